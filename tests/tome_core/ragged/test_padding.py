from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tome_core.models import as_schedule, specs
from tests.tome_core.oracle import Spec
from tome_core import Bipartite, Schedule
from tome_core.ragged.padding import make_padded_layouts, padded_layouts
from tome_core.ragged.plan import make_plan

BATCHES = st.lists(specs(depth=4), min_size=1, max_size=6)


@given(BATCHES)
def test_a_padded_batch_has_the_tokens_of_each_image_and_repeats_its_last(
    batch: list[Spec],
) -> None:
    schedules = [Schedule.of(as_schedule(spec)) for spec in batch]
    plan = make_plan(schedules, 4, 17, 1, Bipartite())
    for block, places in enumerate(padded_layouts(plan, torch.empty(0))):
        buffer = torch.arange(plan.length(block))
        images = [image for _, view in plan.views(buffer, block) for image in view]
        padded = places.pad(buffer)
        assert padded.shape == (len(batch), max(len(image) for image in images))
        for image, row, valid in zip(images, padded, places.inside, strict=True):
            assert torch.equal(row[: len(image)], image)
            assert bool((row[len(image) :] == image[-1]).all())
            assert valid.tolist() == [column < len(image) for column in range(len(row))]
        assert torch.equal(places.unpad(padded), buffer)


def test_the_index_tensors_of_two_blocks_equal_those_by_hand() -> None:
    offsets = torch.tensor([[0, 3, 5], [0, 1, 3]])
    first, second = make_padded_layouts(offsets, [(3, 2), (1, 2)])
    assert (first.longest, second.longest) == (3, 2)
    assert first.padded.tolist() == [[0, 1, 2], [3, 4, 4]]
    assert second.padded.tolist() == [[0, 0], [1, 2]]
    assert first.flat.tolist() == [0, 1, 2, 3, 4]
    assert second.flat.tolist() == [0, 2, 3]
    assert first.counts.tolist() == [[3], [2]]
    assert second.starts.tolist() == [0, 1, 3]
    assert second.starts.dtype == torch.int32


def test_index_tensors_are_cached_with_the_plan() -> None:
    plan = make_plan([Schedule.of(3), Schedule.of(0)], 2, 9, 1, Bipartite())
    like = torch.empty(0)
    assert padded_layouts(plan, like) is padded_layouts(plan, like)
