from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.models import VARIANTS, as_schedule, make_images, make_vit, specs
from tests.tome_core.oracle import Spec
from tome_core import Kth, Matcher, Random, Schedule, patch

VARIANT_NAMES = st.sampled_from(["class-token", "average-no-prefix", "distilled", "registers"])


@settings(max_examples=60)
@given(
    VARIANT_NAMES,
    st.lists(specs(), min_size=1, max_size=5),
    st.sampled_from([None, Kth(3), Random()]),
)
def test_a_trace_accounts_for_every_token(
    variant: str, batch: list[Spec], matcher: Matcher | None
) -> None:
    vit = make_vit(**VARIANTS[variant])
    prefix = vit.num_prefix_tokens
    inputs = 16 + vit.num_prefix_tokens
    trace = patch(vit, matcher=matcher).trace(
        make_images(len(batch)), r=[as_schedule(spec) for spec in batch]
    )
    assert trace.source.dtype == torch.int64 and trace.source.shape == (len(batch), inputs)
    dense = trace.unmerge()
    assert dense.shape == (len(batch), inputs, 16)
    for at, source in enumerate(trace.source):
        tokens = trace.tokens[at]
        sizes = trace.sizes[at]
        assert tokens.shape == (len(sizes), 16)
        assert float(sizes.sum()) == inputs
        assert sizes[:prefix].tolist() == [1] * prefix
        assert source[:prefix].tolist() == list(range(prefix))
        assert source.bincount(minlength=len(sizes)).tolist() == sizes.tolist()
        assert torch.equal(dense[at], tokens[source])


@settings(max_examples=30)
@given(VARIANT_NAMES, st.lists(specs(), min_size=2, max_size=5))
def test_a_mixed_trace_equals_its_images_one_by_one(variant: str, batch: list[Spec]) -> None:
    model = patch(make_vit(**VARIANTS[variant]))
    images = make_images(len(batch))
    r = [as_schedule(spec) for spec in batch]
    together = model.trace(images, r=r)
    for at in range(len(batch)):
        alone = model.trace(images[at : at + 1], r=r[at])
        assert torch.equal(together.source[at], alone.source[0])
        assert torch.equal(together.sizes[at], alone.sizes[0])
        torch.testing.assert_close(together.tokens[at], alone.tokens[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together.logits[at], alone.logits[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together.unmerge()[at], alone.unmerge()[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("r", [0, 3, [3, 3], Schedule.constant(3), [3, Schedule.constant(3)]])
def test_one_schedule_gives_tensors(r: Any) -> None:
    trace = patch(make_vit()).trace(make_images(2), r=r)
    assert isinstance(trace.tokens, Tensor) and isinstance(trace.sizes, Tensor)
    assert trace.tokens.shape == (2, *trace.sizes.shape[1:], 16)
    assert trace.sizes.shape[0] == 2


def test_mixed_schedules_give_lists() -> None:
    trace = patch(make_vit()).trace(make_images(3), r=[3, 0, 3])
    assert isinstance(trace.tokens, list) and isinstance(trace.sizes, list)
    assert [tokens.shape for tokens in trace.tokens] == [(8, 16), (17, 16), (8, 16)]
    assert [sizes.shape for sizes in trace.sizes] == [(8,), (17,), (8,)]


def test_without_merging_nothing_moves() -> None:
    trace = patch(make_vit()).trace(make_images(2), r=0)
    assert trace.source.tolist() == [list(range(17))] * 2
    assert isinstance(trace.tokens, Tensor) and isinstance(trace.sizes, Tensor)
    assert torch.equal(trace.sizes, torch.ones(2, 17, dtype=torch.float64))
    assert torch.equal(trace.unmerge(), trace.tokens)


def test_logits_are_those_of_a_plain_call() -> None:
    model = patch(make_vit())
    images = make_images(4)
    for r in (0, 5, [0, 5, 2, 5]):
        assert torch.equal(model.trace(images, r=r).logits, model(images, r=r))


def test_equal_patches_end_in_one_token() -> None:
    # Upper half one colour, lower half another, no positions: no token may hold patches of both.
    image = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    image[:, 0, :8] = 2.0
    image[:, 1, 8:] = -3.0
    source = (
        patch(make_vit(pos_embed="none")).trace(image, r=Schedule.per_layer([8, 4])).source[0, 1:]
    )
    upper = set(source[:8].tolist())
    lower = set(source[8:].tolist())
    assert not upper & lower
    assert len(upper | lower) == 4
