from __future__ import annotations

import random
from itertools import islice

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.tome_core.models import as_schedule, make_images, make_vit, specs
from tests.tome_core.oracle import Spec
from tome_core import Bipartite, Kth, Random, Schedule, patch
from tome_core.backends.padded import PaddedStrategy
from tome_core.execution import Execution
from tome_core.ragged.plan import make_plan, shared_cache, token_counts

SPECS = st.lists(specs(depth=4), min_size=1, max_size=8)


@given(SPECS, st.integers(0, 20), st.integers(0, 5))
def test_every_image_is_in_one_group_with_its_own_counts(
    batch: list[Spec], patches: int, prefix: int
) -> None:
    schedules = [Schedule.of(as_schedule(spec)) for spec in batch]
    plan = make_plan(tuple(schedules), 4, patches + prefix, prefix, Bipartite())
    assert sorted(plan.order) == list(range(len(batch)))
    assert [plan.order[index] for index in plan.inverse_order] == list(range(len(batch)))
    images = iter(plan.order)
    for group in plan.groups:
        for image in islice(images, group.images):
            assert group.tokens == schedules[image].tokens(4, patches + prefix, prefix)
    assert len({group.tokens for group in plan.groups}) == len(plan.groups)


@given(SPECS)
def test_views_are_the_images_of_the_buffer(batch: list[Spec]) -> None:
    plan = make_plan(tuple(Schedule.of(as_schedule(spec)) for spec in batch), 4, 17, 1, Bipartite())
    for index in range(-1, 5):
        length = sum(group.images * group.tokens[index] for group in plan.groups)
        buffer = torch.arange(length * 2).view(length, 2)
        views = list(plan.views(buffer, index))
        assert [group for group, _ in views] == list(plan.groups)
        for group, view in views:
            assert view.shape == (group.images, group.tokens[index], 2)
            assert view.data_ptr() >= buffer.data_ptr()  # a view, no copy
        assert torch.equal(torch.cat([view.flatten(0, 1) for _, view in views]), buffer)


def test_equal_schedules_share_a_group() -> None:
    plan = make_plan(tuple(Schedule.of(r) for r in (4, 0, 4, 0, 4)), 3, 17, 1, Bipartite())
    assert [group.images for group in plan.groups] == [2, 3]
    assert plan.order == (1, 3, 0, 2, 4)
    assert len(make_plan((Schedule.of(4),) * 3, 3, 17, 1, Bipartite()).groups) == 1


def test_schedules_that_clamp_to_the_same_counts_share_a_group() -> None:
    plan = make_plan((Schedule.of(8), Schedule.of(50)), 3, 17, 1, Bipartite())
    assert [group.tokens for group in plan.groups] == [(17, 9, 5, 3)]


def test_counts_follow_the_matcher() -> None:
    some = Schedule.per_layer([5, 0, 1])
    assert token_counts(some, 3, 17, 1, Bipartite()) == (17, 12, 12, 11)
    assert token_counts(some, 3, 17, 1, Random()) == (17, 12, 12, 11)
    assert token_counts(some, 3, 17, 1, Kth(2)) == (17, 9, 9, 5)
    assert token_counts(some, 3, 17, 1, Kth(4)) == (17, 5, 5, 2)


def test_the_cache_is_bounded() -> None:
    # Clients choose schedules, so an unbounded cache would be a memory leak.
    assert token_counts.cache_info().maxsize is not None
    assert shared_cache.cache_info().maxsize is not None


@given(SPECS, st.randoms())
def test_the_cache_is_shared_by_all_orders_of_a_batch(
    batch: list[Spec], shuffle: random.Random
) -> None:
    schedules = [Schedule.of(as_schedule(spec)) for spec in batch]
    shuffled = shuffle.sample(schedules, len(schedules))
    plan, other = (make_plan(some, 4, 17, 1, Bipartite()) for some in (schedules, shuffled))
    assert plan.groups == other.groups
    assert other.offsets(torch.empty(0)) is plan.offsets(torch.empty(0))


def test_cached_tensors_are_made_once_and_usable_in_training() -> None:
    plan = make_plan((Schedule.of(1), Schedule.of(0)), 2, 9, 1, Bipartite())
    with torch.inference_mode():
        offsets = plan.offsets(torch.empty(0))
        assert plan.arrange(torch.arange(2)).tolist() == list(plan.order)
    assert plan.offsets(torch.empty(0)) is offsets and not offsets.is_inference()
    assert offsets.tolist() == [[0, 9, 18], [0, 9, 17], [0, 9, 16]]
    rows = torch.randn(2, 3, requires_grad=True)
    plan.restore(plan.arrange(rows)).square().sum().backward()
    torch.testing.assert_close(rows.grad, 2 * rows.detach())


def test_fake_tensors_are_not_cached() -> None:
    plan = make_plan((Schedule.of(2), Schedule.of(0)), 2, 9, 1, Bipartite())
    with FakeTensorMode():
        assert plan.offsets(torch.empty(1, device="cuda")).device.type == "cuda"
        assert plan.offsets(torch.empty(1)).device.type == "cpu"
    assert plan.offsets(torch.empty(1)).tolist()[0] == [0, 9, 18]


@given(SPECS, st.integers(1, 3))
def test_leading_rows_are_the_first_of_each_image(batch: list[Spec], count: int) -> None:
    plan = make_plan(tuple(Schedule.of(as_schedule(spec)) for spec in batch), 4, 17, 3, Bipartite())
    for block in range(4):
        rows = torch.arange(plan.length(block) * 2).view(-1, 2)
        expected = [image[:count] for _, view in plan.views(rows, block) for image in view]
        assert torch.equal(plan.leading(rows, block, count), torch.cat(expected))


def test_a_batch_of_one_schedule_caches_nothing() -> None:
    """A CUDA graph reads the tensors of its recorded pass after the plan is gone."""
    images = make_images(3)
    model = patch(make_vit(reg_tokens=4))
    shared_cache.cache_clear()
    with torch.no_grad():
        for strategy in (model.execution.strategy, PaddedStrategy()):
            model.execution = Execution(strategy, prune=True)
            model(images, r=2)
    matcher = model.merging.matcher
    tokens = model.input_tokens(images)
    plan = make_plan(
        (Schedule.of(2),) * 3, len(model.adapter.blocks), tokens, model.merging.prefix, matcher
    )
    assert (shared_cache.cache_info().misses, shared_cache.cache_info().hits) == (1, 2)
    assert not plan._cache
