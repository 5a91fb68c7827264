import itertools
from collections.abc import Sequence

import pytest

from server.engine import warmup
from server.engine.execution.runner import Runner
from server.engine.scheduling.calibration import Calibration
from server.engine.warmup import (
    describe,
    graph_kinds,
    kinds_of,
    level_batch,
    measure_costs,
    measure_levels,
    possible,
)
from tome_core.schedule import Schedule

LEVELS = [Schedule.constant(r) for r in (0, 4, 8)]


def test_levels_are_those_that_the_model_can_do(runner: Runner) -> None:
    assert possible(runner, (0, 4, 8, 99)) == LEVELS


def test_levels_say_what_is_left(runner: Runner) -> None:
    levels = measure_levels(runner, LEVELS, batch=2)
    assert [(level.r, level.tokens_out) for level in levels] == [("0", 17), ("4", 9), ("8", 5)]
    assert levels[0].relative_flops == levels[0].speedup == 1
    assert 1 > levels[1].relative_flops > levels[2].relative_flops > 0


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_what_disturbs_a_turn_does_not_show(
    least: float, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = itertools.count()
    now = 0.0

    def seconds(schedules: Sequence[Schedule]) -> float:
        nonlocal now
        now += 0.001
        disturbed = next(turns) % 5 < 3  # three levels: another of them each turn
        return {LEVELS[0]: 1.0, LEVELS[1]: 0.8, LEVELS[2]: 0.5}[schedules[0]] * (
            3 if disturbed else 1
        )

    monkeypatch.setattr(warmup, "LEVEL_SECONDS", least)
    monkeypatch.setattr(warmup.time, "monotonic", lambda: now)
    monkeypatch.setattr(runner, "seconds", seconds)
    assert [level.speedup for level in measure_levels(runner, LEVELS, batch=2)] == [1.0, 1.25, 2.0]
    assert (next(turns) > 3 * (1 + warmup.ROUNDS)) == (least > 0)


@pytest.mark.parametrize("max_batch", [1, 2, 6, 32])
def test_batches_of_all_kinds_are_timed(max_batch: int) -> None:
    kinds = list(kinds_of(LEVELS, max_batch))
    assert len(set(kinds)) == len(kinds)
    assert {len(kind) for kind in kinds} >= {1, max_batch}
    assert max_batch == 1 or any(len(set(kind)) > 1 for kind in kinds)
    assert {kind[0] for kind in kinds if len(kind) == max_batch} == {LEVELS[0], LEVELS[-1]}
    assert list(kinds_of(LEVELS[:1], max_batch))


@pytest.mark.parametrize(
    "buckets", [(1, 2, 4, 8, 16, 32, 48, 64, 96, 128), (1, 2, 4, 8, 16, 32), (1,)]
)
def test_batches_of_graphs_and_others_are_timed(buckets: tuple[int, ...]) -> None:
    kinds = list(graph_kinds(LEVELS, 128, buckets))
    assert len(set(kinds)) == len(kinds)
    alike = {(kind[0], len(kind)) for kind in kinds if len(set(kind)) == 1}
    assert alike >= {
        (level, size) for level in LEVELS for size in (1, 8, 32, 128) if size <= buckets[-1]
    }
    assert alike >= {(level, 128) for level in (LEVELS[0], LEVELS[-1])}
    others = {schedule for schedule, _ in alike} - set(LEVELS)
    assert others == {Schedule.constant(1), Schedule.per_layer([1])}
    assert {len(kind) for kind in kinds if len(set(kind)) > 1} == {8, 32, 128}


@pytest.mark.parametrize("max_batch", [1, 2, 8, 20])
def test_batches_of_graphs_are_no_larger_than_any(max_batch: int) -> None:
    for levels in (LEVELS, LEVELS[:1]):
        kinds = list(graph_kinds(levels, max_batch, (1, max_batch)))
        assert len(set(kinds)) == len(kinds)
        assert {len(kind) for kind in kinds} == {
            size for size in (1, 8, max_batch) if size <= max_batch
        }


def test_a_model_can_be_calibrated(runner: Runner) -> None:
    samples = measure_costs(runner, LEVELS, 6)
    assert [sample.schedules for sample in samples] == list(kinds_of(LEVELS, 6))
    calibration = Calibration(describe(runner, ()).geometry, samples)
    assert calibration.predict(LEVELS[:1] * 6) > 0


def test_a_budget_that_is_spent_leaves_the_small_batches(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "BUDGET_SECONDS", 0.0)
    (sample,) = measure_costs(runner, LEVELS, 6)
    assert sample.schedules == (LEVELS[0],)


def test_where_graphs_are_recorded_they_are_timed(runner: Runner) -> None:
    samples = measure_costs(runner, LEVELS, 6, buckets=(1, 4, 6))
    assert [sample.schedules for sample in samples] == list(graph_kinds(LEVELS, 6, (1, 4, 6)))


def test_a_gpu_is_timed_with_full_batches() -> None:
    assert level_batch(0.001, levels=5, max_batch=128, device="cuda") == 128
    assert level_batch(0.001, levels=5, max_batch=128) == 8
    assert level_batch(0.05, levels=5, max_batch=128, device="cuda") == 8


def test_a_slow_model_is_timed_with_fewer_images() -> None:
    assert level_batch(0.001, levels=5, max_batch=32) == 8
    assert level_batch(0.001, levels=5, max_batch=2) == 2
    assert level_batch(0.2, levels=5, max_batch=32) == 2
    assert level_batch(3.0, levels=5, max_batch=32) == 1
