"""Graphs for mixed batches: which one serves a batch, what it reads, and what it returns."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.engine.device import cuda_graphs
from server.engine.device.cuda_graphs import Graphs
from server.engine.device.forward import Forward
from server.engine.device.graph_inputs import GraphInputs
from server.engine.device.readout import Readout
from server.engine.loading.model_loader import LoadedModel
from tests.server.engine.device.fake_graphs import CPU, IMAGE_SHAPE, FakeRecorder, random_pixels
from tome_core import MergedViT
from tome_core.block import run_block
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import BoundedPlan, Group, Plan
from tome_core.schedule import Schedule

DEPTH = 12
TOKENS = 197
MAX_BATCH = 32
LEVELS = [Schedule.constant(r) for r in (0, 4, 8, 12, 16)]
OTHER_SCHEDULES = [
    Schedule.constant(3),
    Schedule.linear(16, -1),
    Schedule.per_layer([0, 90, 30]),
]
ANY_SCHEDULE = st.sampled_from([*LEVELS, *OTHER_SCHEDULES])


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def token_counts(schedule: Schedule) -> tuple[int, ...]:
    return schedule.tokens(DEPTH, TOKENS, 1)


def total_token_counts(schedules: list[Schedule]) -> list[int]:
    """Return the tokens of all images: at the input and after each block."""
    image_counts = [token_counts(schedule) for schedule in schedules]
    return [sum(counts) for counts in zip(*image_counts, strict=True)]


def smallest_bucket(graphs: Graphs, images: int) -> int:
    return min(bucket for bucket in graphs.buckets if bucket >= images)


def within_bounds(
    schedules: list[Schedule],
    level: Schedule,
    bucket: int,
) -> bool:
    totals = total_token_counts(schedules)
    bounds = [bucket * count for count in token_counts(level)]
    return all(total <= bound for total, bound in zip(totals, bounds, strict=True))


def make_graphs(max_graphs: int = 64) -> Graphs:
    """Return graphs that compute nothing: these tests ask only which of them serves a batch."""

    def record(run: Callable[[], Readout]) -> tuple[Readout, Callable[[], None]]:
        return Readout(None, torch.empty(0), 0), never  # type: ignore[arg-type]

    def never(*_: object) -> Any:
        raise AssertionError("no pass runs")

    pixels = torch.empty(MAX_BATCH, 1, 1, 1, dtype=torch.uint8)
    inputs = GraphInputs(token_counts, MAX_BATCH, CPU)
    graphs = Graphs(never, pixels, record, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graphs, "MAX_GRAPHS", max_graphs)
        graphs.record(LEVELS)
    return graphs


GRAPHS = make_graphs()


@given(st.lists(ANY_SCHEDULE, min_size=1, max_size=MAX_BATCH))
def test_a_batch_gets_the_graph_with_the_fewest_tokens_that_holds_it(
    schedules: list[Schedule],
) -> None:
    match = GRAPHS.find(schedules)
    assert match is not None
    bucket = match.graph.bucket
    assert bucket == smallest_bucket(GRAPHS, len(schedules))
    if match.graph.bounded:
        levels = [level for level in LEVELS if within_bounds(schedules, level, bucket)]
        assert match.graph.schedule == levels[-1]
    else:
        assert set(schedules) == {LEVELS[0]}
        assert match.starts is None


@given(st.lists(ANY_SCHEDULE, min_size=1, max_size=MAX_BATCH))
def test_starts_are_running_sums_of_the_token_counts(schedules: list[Schedule]) -> None:
    inputs = GraphInputs(token_counts, MAX_BATCH, CPU)
    starts = inputs.starts(schedules)
    assert starts.shape == (DEPTH + 1, MAX_BATCH + 1)
    rows = zip(*map(token_counts, schedules), strict=True)
    for row, counts in zip(starts.tolist(), rows, strict=True):
        expected = [*accumulate(counts, initial=0)]
        missing_images = MAX_BATCH - len(schedules)
        assert row == expected + expected[-1:] * missing_images


def test_the_match_of_a_mixed_batch_has_its_starts() -> None:
    schedules = [LEVELS[1], LEVELS[3], OTHER_SCHEDULES[0]]
    match = GRAPHS.find(schedules)
    assert match is not None
    assert match.starts is not None
    assert GRAPHS.inputs is not None
    assert np.array_equal(match.starts, GRAPHS.inputs.starts(schedules))


def test_a_batch_that_is_too_large_has_no_graph() -> None:
    assert GRAPHS.find(LEVELS[:1] * (MAX_BATCH + 1)) is None


def test_a_batch_of_a_bucket_that_is_not_recorded_has_no_graph() -> None:
    # For one image: the graph without merging, and those within the bounds of r=0, 4 and 8.
    graphs = make_graphs(max_graphs=4)
    assert len(graphs) == 4
    assert graphs.buckets == (1,)
    assert graphs.find(LEVELS[:2]) is None
    match = graphs.find(LEVELS[-1:])
    assert match is not None
    assert match.graph.schedule == LEVELS[2]


def test_each_graph_has_a_test_batch_that_it_serves() -> None:
    test_batches = list(GRAPHS.test_batches(random.Random(0)))
    assert [match.graph for match, _ in test_batches] == list(GRAPHS)
    mixed = 0
    for match, schedules in test_batches:
        bucket = match.graph.bucket
        assert bucket == smallest_bucket(GRAPHS, len(schedules))
        if match.graph.bounded:
            assert within_bounds(schedules, match.graph.schedule, bucket)
        if len(set(schedules)) > 1:
            mixed += 1
    assert mixed > len(test_batches) // 3


class ReferenceEncoder:
    """An encoder that reads token counts from the `starts` of a bounded plan.

    It runs the reference, block by block.
    """

    reads_starts = True

    def __init__(self, network: MergedViT) -> None:
        self.blocks = network.adapter.blocks
        self.execution = network.execution
        self.plans: list[Plan] = []

    def supports(self, context: BlockContext) -> bool:
        return context.packed.sources is None

    def __call__(self, context: BlockContext, leading: int | None) -> Packed:
        plan = context.plan
        self.plans.append(plan)
        if isinstance(plan, BoundedPlan):
            return self._run_bounded(context, plan, leading)
        return self._run(context, leading)

    def _run_bounded(
        self,
        context: BlockContext,
        plan: BoundedPlan,
        leading: int | None,
    ) -> Packed:
        packed = context.packed
        groups = self._read_groups(plan)
        images = plan.groups[0].images
        width = packed.tokens.shape[1]
        tokens = torch.full((images * (leading or 0), width), torch.nan)
        if groups:
            exact_plan = Plan(groups, tuple(range(len(groups))))
            valid_tokens = sum(group.tokens[0] for group in groups)
            valid = replace(
                packed,
                tokens=packed.tokens[:valid_tokens],
                sizes=(None,) * len(groups),
            )
            exact = replace(context, plan=exact_plan, packed=valid)
            result = self._run(exact, leading).tokens
            tokens[: len(result)] = result
        return replace(packed, tokens=tokens)

    def _read_groups(self, plan: BoundedPlan) -> tuple[Group, ...]:
        """Return one group for each image that the batch has."""
        groups = []
        for counts in plan.starts.diff(dim=1).T.tolist():
            if counts[0]:
                merged = tuple(-difference for difference in np.diff(counts))
                groups.append(Group(1, merged, tuple(counts)))
        return tuple(groups)

    def _run(self, context: BlockContext, leading: int | None) -> Packed:
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            kept = leading if index == last else None
            context = context.following(run_block(block, self.execution, context, kept))
        return context.packed


@pytest.fixture
def bounded(tiny: LoadedModel) -> Forward:
    network = copy.deepcopy(tiny.network)
    network.execution = replace(network.execution, prune=True)
    network.encoder = ReferenceEncoder(network)
    assert network.takes_bounds
    return Forward(network, tiny.mean, tiny.std, CPU)


def test_mixed_batches_by_graphs_have_the_same_outputs_as_without(
    bounded: Forward,
    tiny: LoadedModel,
) -> None:
    without_graphs = Forward(tiny.network, tiny.mean, tiny.std, CPU)
    recorder = FakeRecorder()
    assert bounded.record((0, 2, 4), 6, IMAGE_SHAPE, recorder) == ""
    levels = frozenset(Schedule.constant(r) for r in (0, 2, 4))
    assert bounded.recorded == (levels, (1, 2, 4, 6), True)
    choices = [*levels, Schedule.constant(3), Schedule.per_layer([0, 8])]
    rng = random.Random(0)
    for count, bucket in ((6, 6), (5, 6), (3, 4), (1, 1), (2, 2), (6, 6), (4, 4)):
        schedules = rng.choices(choices, k=count)
        recorder.replayed.clear()
        pixels = random_pixels(count)
        outputs = bounded(pixels, schedules)
        expected = without_graphs(pixels, schedules)
        assert recorder.replayed == [bucket]
        assert_close(outputs.logits, expected.logits)
        assert_close(outputs.features, expected.features)


@pytest.mark.parametrize(("r", "is_bounded"), [(0, False), (4, True)])
def test_a_batch_without_merging_runs_a_graph_without_merging(
    bounded: Forward,
    r: int,
    is_bounded: bool,
) -> None:
    assert bounded.record((0, 4), 4, IMAGE_SHAPE, FakeRecorder()) == ""
    encoder = bounded.network.encoder
    assert isinstance(encoder, ReferenceEncoder)
    encoder.plans.clear()
    bounded(random_pixels(3), [Schedule.constant(r)] * 3)
    (plan,) = encoder.plans
    assert isinstance(plan, BoundedPlan) == is_bounded


def test_graphs_that_compute_mixed_batches_wrongly_are_dropped(
    bounded: Forward,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right_starts = GraphInputs.starts

    def starts_without_the_last_image(
        self: GraphInputs,
        schedules: list[Schedule],
    ) -> np.ndarray:
        return right_starts(self, schedules[:-1] or schedules)

    monkeypatch.setattr(GraphInputs, "starts", starts_without_the_last_image)
    assert "differs by" in bounded.record((0, 8), 6, IMAGE_SHAPE, FakeRecorder())
    assert bounded.recorded == (frozenset(), (), False)


def test_only_an_encoder_runs_a_bounded_plan(tiny: LoadedModel) -> None:
    assert not tiny.network.takes_bounds
    plan = BoundedPlan.of((17, 13, 9), torch.zeros(3, 3, dtype=torch.int32))
    images: Tensor = torch.zeros(2, *IMAGE_SHAPE)
    with pytest.raises(TypeError, match="on the device alone"):
        tiny.network(images, r=plan)
