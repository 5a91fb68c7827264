"""Bounded plans give the results of exact plans, for any previous content of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tome_core.backends.cuda.device import DEVICE
from tests.tome_core.backends.cuda.merging_cases import offsets
from tests.tome_core.backends.cuda.test_encoder import images, model_with_encoder, reference_of
from tests.tome_core.models import DEPTH, as_schedule, specs
from tests.tome_core.oracle import Spec
from tome_core import MergedViT, Schedule
from tome_core.backends.cuda.attention import unpack
from tome_core.backends.cuda.matching import match
from tome_core.backends.cuda.merging import merge_norm
from tome_core.ragged.plan import BoundedPlan

LEVELS = (0, 1, 4)


@pytest.fixture(autouse=True)
def fill_new_memory() -> Iterator[None]:
    """New memory holds NaN, or the largest integer of its dtype."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic  # torch makes its attributes when it runs
    assert deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan()
    assert torch.ones(1, dtype=torch.int32).new_empty(1) == 2**31 - 1
    yield
    torch.use_deterministic_algorithms(before)


def make_starts(model: MergedViT, schedules: Sequence[Schedule], images: int) -> torch.Tensor:
    tokens = 16 + model.merging.prefix
    rows = zip(*(model.token_counts(schedule, tokens) for schedule in schedules), strict=True)
    starts = [[*accumulate(row, initial=0)] for row in rows]
    padded = [row + row[-1:] * (images + 1 - len(row)) for row in starts]
    return torch.tensor(padded, dtype=torch.int32, device=DEVICE)


def strongest_level(model: MergedViT, starts: torch.Tensor, images: int) -> int:
    """Return the strongest level whose bounds the batch stays within."""
    tokens = 16 + model.merging.prefix
    bounds = {
        level: torch.tensor(model.token_counts(level, tokens), device=DEVICE) * images
        for level in LEVELS
    }
    return max(level for level, bound in bounds.items() if (starts[:, -1] <= bound).all())


@pytest.mark.parametrize("variant", ["class-token", "distilled", "layer-scale"])
@settings(max_examples=2)
@given(st.lists(st.lists(specs(), min_size=1, max_size=4), min_size=2, max_size=2))
@torch.no_grad()
def test_one_buffer_of_starts_serves_any_mix_of_schedules(
    variant: str,
    batches: list[list[Spec]],
) -> None:
    """The buffer has room for more images than a batch has; all bounds that hold are tried."""
    model = model_with_encoder(variant)
    assert model.takes_bounds
    x = images(4)
    shared = torch.zeros(DEPTH + 1, 5, dtype=torch.int32, device=DEVICE)
    plans = {
        level: BoundedPlan.of(model.token_counts(level, 16 + model.merging.prefix), shared)
        for level in LEVELS
    }
    for batch in batches:
        schedules = [Schedule.of(as_schedule(spec)) for spec in batch]
        shared.copy_(make_starts(model, schedules, 4))
        expected = reference_of(variant)(x[: len(batch)], r=schedules)
        for level in {0, strongest_level(model, shared, 4)}:
            result = model(x, r=plans[level])[: len(batch)]
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["class-token", "distilled"])
@torch.no_grad()
def test_batches_that_fill_their_bounds(variant: str) -> None:
    """One batch fills its bounds, in one images merge more and less, one has a single image."""
    model = model_with_encoder(variant)
    counts = model.token_counts(4, 16 + model.merging.prefix)
    for r in ([4] * 3, [3, 8], [8]):
        schedules = [Schedule.of(one) for one in r]
        starts = make_starts(model, schedules, 3)
        assert (starts[:, -1] <= 3 * torch.tensor(counts, device=DEVICE)).all()
        x = images(3)
        x[len(r) :] = torch.nan
        result = model(x, r=BoundedPlan.of(counts, starts))[: len(r)]
        torch.testing.assert_close(
            result, reference_of(variant)(x[: len(r)], r=schedules), rtol=1e-4, atol=1e-4
        )


def test_calls_that_need_the_host_to_know_images_raise() -> None:
    plan = BoundedPlan.of(
        (17, 13, 9, 5), torch.zeros(DEPTH + 1, 3, dtype=torch.int32, device=DEVICE)
    )
    for call in (
        reference_of("class-token"),
        model_with_encoder("class-token").forward_features,
        model_with_encoder("no-prefix"),
    ):
        with pytest.raises(TypeError, match="on the device alone"), torch.no_grad():
            call(images(2), r=plan)
    assert not any(
        model.takes_bounds
        for model in (reference_of("class-token"), model_with_encoder("no-prefix"))
    )


def test_matching_and_merging_with_room_for_more_tokens() -> None:
    """The result is the same; destinations past the last get nothing and are not written."""
    lengths = (12, 9, 0, 0)
    after = (8, 9, 0, 0)
    qkv = torch.randn(30, 3 * 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    qkv[21:] = torch.nan
    keys = unpack(qkv, 2)[1]
    exact = match(keys[:21], offsets(lengths[:2]), offsets(after[:2]), 12, 17, 1)
    found = match(keys, offsets(lengths), offsets(after), 300, 25, 1)
    assert torch.equal(found.order[:21], exact.order)
    assert torch.equal(found.dest[:21], exact.dest)
    assert torch.equal(found.segment_starts[:18], exact.segment_starts)
    assert found.segment_starts[18:].tolist() == [21] * 8
    x = qkv[:, :24].contiguous()
    weight = torch.ones(24, device=DEVICE)
    expected = merge_norm(
        x[:21], x[:21], None, exact.order, exact.segment_starts, weight, weight, 1e-6
    )
    merged = merge_norm(x, x, None, found.order, found.segment_starts, weight, weight, 1e-6)
    for one, other in zip(merged, expected, strict=True):
        assert torch.equal(one[:17], other)
        assert one[17:].isnan().all()
