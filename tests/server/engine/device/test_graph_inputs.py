"""Graphs for any mix of schedules: which one serves a batch, what it is told of it, and what it
answers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

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
from tests.server.engine.device.test_cuda_graphs import CPU, SIZE, Again, images
from tome_core import MergedViT
from tome_core.block import run_block
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import BoundedPlan, Group, Plan
from tome_core.schedule import Schedule

DEPTH = 12
TOKENS = 197
MAX_BATCH = 32
LEVELS = [Schedule.constant(r) for r in (0, 4, 8, 12, 16)]
ANY = st.sampled_from(
    [*LEVELS, Schedule.constant(3), Schedule.linear(16, -1), Schedule.per_layer([0, 90, 30])]
)


def counts(schedule: Schedule) -> tuple[int, ...]:
    return schedule.tokens(DEPTH, TOKENS, 1)


def recorded(limit: int = 64) -> Graphs:
    """Of a model that is not there: only what is found matters."""

    def record(run: Callable[[], Readout]) -> tuple[Readout, Callable[[], None]]:
        return Readout(None, torch.empty(0), 0), lambda: None  # type: ignore[arg-type]

    pixels = torch.empty(MAX_BATCH, 1, 1, 1, dtype=torch.uint8)
    made = Graphs(lambda pixels, r: None, pixels, record, GraphInputs(counts, MAX_BATCH, CPU))  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graphs, "MAX_GRAPHS", limit)
        made.record(LEVELS)
    return made


RECORDED = recorded()


@given(st.lists(ANY, min_size=1, max_size=MAX_BATCH))
def test_every_batch_gets_the_smallest_buffers_that_hold_it(schedules: list[Schedule]) -> None:
    found = RECORDED.find(schedules)
    assert found is not None
    bucket = len(found.graph.pixels)
    assert bucket == min(size for size in RECORDED.buckets if size >= len(schedules))
    totals = [sum(row) for row in zip(*map(counts, schedules), strict=True)]
    if not found.graph.bounded:
        assert set(schedules) == {LEVELS[0]} and found.starts is None
        return
    assert found.starts is not None
    fitting = [
        level
        for level in LEVELS
        if all(total <= bucket * bound for total, bound in zip(totals, counts(level), strict=True))
    ]
    assert found.graph.schedule == fitting[-1]
    columns = zip(*map(counts, schedules), strict=True)
    for starts, row in zip(found.starts.tolist(), columns, strict=True):
        expected = [*accumulate(row, initial=0)]
        assert starts == expected + expected[-1:] * (MAX_BATCH - len(schedules))


def test_what_is_too_large_or_was_left_out_runs_as_it_comes() -> None:
    assert RECORDED.find(LEVELS[:1] * (MAX_BATCH + 1)) is None
    few = recorded(limit=4)  # at one image: r=0 alone, and within the bounds of 0, 4 and 8
    assert (len(few), few.buckets) == (4, (1,))
    assert few.find(LEVELS[:2]) is None
    found = few.find(LEVELS[-1:])
    assert found is not None and found.graph.schedule == LEVELS[2]


def test_what_graphs_are_tried_on_fits_them_and_mixes() -> None:
    trials = list(RECORDED.trials(random.Random(0)))
    assert [found.graph for found, _ in trials] == list(RECORDED)
    for found, schedules in trials:
        bucket = len(found.graph.pixels)
        assert min(size for size in RECORDED.buckets if size >= len(schedules)) == bucket
        if found.graph.bounded:
            assert RECORDED.mixes is not None and found.starts is not None
            assert RECORDED.mixes.holds(found.graph.schedule, bucket, found.starts)
    assert sum(len(set(schedules)) > 1 for _, schedules in trials) > len(trials) // 3


class ReadsStarts:
    """An encoder for bounds that runs the reference, block by block, once it has read what the
    images are.
    """

    reads_starts = True

    def __init__(self, network: MergedViT) -> None:
        self.blocks = network.adapter.blocks
        self.plans: list[Plan] = []

    def takes(self, merging: Merging, packed: Packed) -> bool:
        return packed.sources is None

    def __call__(self, merging: Merging, plan: Plan, packed: Packed, leading: int | None) -> Packed:
        self.plans.append(plan)
        if not isinstance(plan, BoundedPlan):
            return self._run(merging, plan, packed, leading)
        rows = [row for row in plan.starts.diff(dim=1).T.tolist() if row[0]]
        groups = tuple(
            Group(1, tuple(-difference for difference in np.diff(row)), tuple(row)) for row in rows
        )
        images = plan.groups[0].images
        width = packed.tokens.shape[1]
        tokens = torch.full((images * (leading or 0), width), torch.nan)
        if groups:
            inside = packed.tokens[: sum(group.tokens[0] for group in groups)]
            exact = replace(packed, tokens=inside, sizes=(None,) * len(groups))
            found = self._run(
                merging, Plan(groups, tuple(range(len(groups)))), exact, leading
            ).tokens
            tokens[: len(found)] = found
        return replace(packed, tokens=tokens)

    def _run(self, merging: Merging, plan: Plan, packed: Packed, leading: int | None) -> Packed:
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            packed = run_block(
                block, merging, plan, index, packed, None, leading if index == last else None
            )
        return packed


@pytest.fixture
def bounded(tiny: LoadedModel) -> Forward:
    network = copy.deepcopy(tiny.network)
    network.merging = replace(network.merging, prune=True)
    network.encoder = ReadsStarts(network)
    assert network.takes_bounds
    return Forward(network, tiny.mean, tiny.std, CPU)


def test_mixes_run_by_graphs_and_answer_as_without(bounded: Forward, tiny: LoadedModel) -> None:
    without = Forward(tiny.network, tiny.mean, tiny.std, CPU)
    recorder = Again()
    assert bounded.record((0, 2, 4), 6, SIZE, recorder) == ""
    levels = frozenset(Schedule.constant(r) for r in (0, 2, 4))
    assert bounded.recorded == (levels, (1, 2, 4, 6), True)
    source = random.Random(0)
    for count in (6, 5, 3, 1, 2, 6, 4):
        schedules = [
            source.choice([*levels, Schedule.constant(3), Schedule.per_layer([0, 8])])
            for _ in range(count)
        ]
        recorder.replays.clear()
        got = bounded(images(count), schedules)
        expected = without(images(count), schedules)
        assert recorder.replays == [{1: 1, 2: 2, 3: 4, 4: 4, 5: 6, 6: 6}[count]]
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.features, expected.features, rtol=1e-4, atol=1e-4)


def test_where_nothing_merges_no_graph_that_merges_runs(bounded: Forward) -> None:
    assert bounded.record((0, 4), 4, SIZE, Again()) == ""
    encoder = bounded.network.encoder
    assert isinstance(encoder, ReadsStarts)
    for r, is_bounded in ((0, False), (4, True)):
        encoder.plans.clear()
        bounded(images(3), [Schedule.constant(r)] * 3)
        assert [isinstance(plan, BoundedPlan) for plan in encoder.plans] == [is_bounded]


def test_graphs_that_are_wrong_about_mixes_are_dropped(
    bounded: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GraphInputs.starts

    def wrong(self: GraphInputs, schedules: list[Schedule]) -> np.ndarray:
        return right(self, schedules[:-1] or schedules)  # of the last image nobody is told

    monkeypatch.setattr(GraphInputs, "starts", wrong)
    assert "differs by" in bounded.record((0, 8), 6, SIZE, Again())
    assert bounded.recorded == (frozenset(), (), False)


def test_only_an_encoder_can_run_bounds(tiny: LoadedModel) -> None:
    assert not tiny.network.takes_bounds
    plan = BoundedPlan.of((17, 13, 9), torch.zeros(3, 3, dtype=torch.int32))
    x: Tensor = torch.zeros(2, *SIZE)
    with pytest.raises(TypeError, match="on the device alone"):
        tiny.network(x, r=plan)
