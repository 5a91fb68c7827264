"""The warm-up: which batches it times, and what it measures of levels."""

import itertools
import time
from collections.abc import Sequence

import pytest

from server.engine import warmup
from server.engine.execution.runner import Runner
from server.engine.scheduling.calibration import Calibration
from server.engine.warmup import (
    calibration_batches,
    graph_calibration_batches,
    level_batch_size,
    level_schedules,
    measure_costs,
    measure_levels,
    model_info,
)
from tome_core.schedule import Schedule

LEVELS = [Schedule.constant(r) for r in (0, 4, 8)]


def test_the_levels_are_those_of_the_model(runner: Runner) -> None:
    assert level_schedules(runner) == [Schedule.constant(level) for level in runner.model.levels]
    assert runner.model.levels == (0, 8)  # of 0, 8, 16: it has too few tokens for the last


def test_levels_report_tokens_and_flops(runner: Runner) -> None:
    levels = measure_levels(runner, LEVELS, batch_size=2)
    assert [(level.r, level.tokens_out) for level in levels] == [("0", 17), ("4", 9), ("8", 5)]
    assert levels[0].relative_flops == levels[0].speedup == 1
    assert 1 > levels[1].relative_flops > levels[2].relative_flops > 0


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_disturbances_of_single_runs_do_not_change_the_speedup(
    least: float, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = itertools.count()
    undisturbed = {LEVELS[0]: 1.0, LEVELS[1]: 0.8, LEVELS[2]: 0.5}
    now = 0.0

    def seconds(schedules: Sequence[Schedule]) -> float:
        nonlocal now
        now += 0.001
        disturbed = next(turns) % 5 < 3  # with three levels, other ones in each turn
        factor = 3 if disturbed else 1
        return factor * undisturbed[schedules[0]]

    monkeypatch.setattr(warmup, "LEVEL_SECONDS", least)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(runner, "seconds", seconds)
    assert [level.speedup for level in measure_levels(runner, LEVELS, batch_size=2)] == [
        1.0,
        1.25,
        2.0,
    ]
    assert (next(turns) > 3 * (1 + warmup.ROUNDS)) == (least > 0)


@pytest.mark.parametrize(("seconds", "turns"), [(0.05, 4), (1.0, 4), (1.7, 2), (60.0, 1)])
def test_levels_of_a_slow_model_are_measured_in_fewer_turns(
    seconds: float, turns: int, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    runs = 0

    def run(schedules: Sequence[Schedule]) -> float:
        nonlocal now, runs
        now += seconds
        runs += 1
        return seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(runner, "seconds", run)
    assert len(measure_levels(runner, LEVELS, batch_size=1)) == len(LEVELS)
    assert runs == turns * len(LEVELS)


@pytest.mark.parametrize("max_batch", [1, 2, 6, 32])
def test_batches_of_all_sizes_and_mixes_are_timed(max_batch: int) -> None:
    batches = list(calibration_batches(LEVELS, max_batch))
    assert len(set(batches)) == len(batches)
    assert {len(batch) for batch in batches} >= {1, max_batch}
    assert max_batch == 1 or any(len(set(batch)) > 1 for batch in batches)
    assert {batch[0] for batch in batches if len(batch) == max_batch} == {LEVELS[0], LEVELS[-1]}
    assert list(calibration_batches(LEVELS[:1], max_batch))


@pytest.mark.parametrize(
    "buckets", [(1, 2, 4, 8, 16, 32, 48, 64, 96, 128), (1, 2, 4, 8, 16, 32), (1,)]
)
def test_batches_by_graphs_and_by_operators_are_timed(buckets: tuple[int, ...]) -> None:
    batches = list(graph_calibration_batches(LEVELS, 128, buckets))
    assert len(set(batches)) == len(batches)
    alike = {(batch[0], len(batch)) for batch in batches if len(set(batch)) == 1}
    assert alike >= {
        (level, size) for level in LEVELS for size in (1, 8, 32, 128) if size <= buckets[-1]
    }
    assert alike >= {(level, 128) for level in (LEVELS[0], LEVELS[-1])}
    others = {schedule for schedule, _ in alike} - set(LEVELS)
    assert others == {Schedule.constant(1), Schedule.per_layer([1])}
    assert {len(batch) for batch in batches if len(set(batch)) > 1} == {8, 32, 128}


@pytest.mark.parametrize("max_batch", [1, 2, 8, 20])
def test_batches_beside_graphs_do_not_exceed_the_largest_batch(max_batch: int) -> None:
    for levels in (LEVELS, LEVELS[:1]):
        batches = list(graph_calibration_batches(levels, max_batch, (1, max_batch)))
        assert len(set(batches)) == len(batches)
        assert {len(batch) for batch in batches} == {
            size for size in (1, 8, max_batch) if size <= max_batch
        }


def test_a_model_can_be_calibrated(runner: Runner) -> None:
    samples = measure_costs(runner, LEVELS, 6)
    assert [sample.schedules for sample in samples] == list(calibration_batches(LEVELS, 6))
    calibration = Calibration(model_info(runner, ()).geometry, samples)
    assert calibration.predict(LEVELS[:1] * 6) > 0


def test_a_spent_budget_leaves_the_smallest_batch(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "BUDGET_SECONDS", 0.0)
    (sample,) = measure_costs(runner, LEVELS, 6)
    assert sample.schedules == (LEVELS[0],)


def test_recorded_graphs_are_timed(runner: Runner) -> None:
    samples = measure_costs(runner, LEVELS, 6, buckets=(1, 4, 6))
    assert [sample.schedules for sample in samples] == list(
        graph_calibration_batches(LEVELS, 6, (1, 4, 6))
    )


def test_a_gpu_is_timed_with_full_batches() -> None:
    assert level_batch_size(0.001, levels=5, max_batch=128, device_type="cuda") == 128
    assert level_batch_size(0.001, levels=5, max_batch=128) == 8
    assert level_batch_size(0.05, levels=5, max_batch=128, device_type="cuda") == 8


def test_a_slow_model_is_timed_with_fewer_images() -> None:
    assert level_batch_size(0.001, levels=5, max_batch=32) == 8
    assert level_batch_size(0.001, levels=5, max_batch=2) == 2
    assert level_batch_size(0.2, levels=5, max_batch=32) == 2
    assert level_batch_size(3.0, levels=5, max_batch=32) == 1
