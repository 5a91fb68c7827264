"""The warm-up: which batches it times, and what it measures of levels."""

import time
from collections.abc import Sequence

import pytest

from server.engine.execution.runner import Runner
from server.engine.scheduling.calibration import Calibration
from server.engine.warmup import (
    calibration_batches,
    describe_levels,
    graph_calibration_batches,
    level_schedules,
    measure_costs,
    model_info,
)
from tome_core.schedule import Schedule

LEVELS = [Schedule.constant(r) for r in (0, 4, 8)]


def test_the_levels_are_those_of_the_model(runner: Runner) -> None:
    assert level_schedules(runner) == [Schedule.constant(level) for level in runner.model.levels]
    assert runner.model.levels == (0, 8)  # of 0, 8, 16: it has too few tokens for the last


def test_levels_report_tokens_flops_and_speedup(runner: Runner) -> None:
    calibration = Calibration(model_info(runner, ()).geometry, measure_costs(runner, LEVELS, 6))
    levels = describe_levels(runner, LEVELS, calibration, max_batch=6)
    assert [(level.r, level.tokens_out) for level in levels] == [("0", 17), ("4", 9), ("8", 5)]
    assert levels[0].relative_flops == levels[0].speedup == 1
    assert 1 > levels[1].relative_flops > levels[2].relative_flops > 0
    for level, schedule in zip(levels, LEVELS, strict=True):
        seconds = calibration.predict([schedule] * 6)
        assert level.speedup == calibration.predict(LEVELS[:1] * 6) / seconds


class SimulatedRuns:
    """Batches that take what they should on an undisturbed machine, and more in some runs."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch, image: float) -> None:
        self.now = 0.0
        self.image = image
        self.sizes: list[int] = []
        self.seen: set[tuple[Schedule, ...]] = set()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(runner, "seconds", self.seconds)

    def undisturbed(self, schedules: Sequence[Schedule]) -> float:
        return self.image * len(schedules)

    def seconds(self, schedules: Sequence[Schedule]) -> float:
        seconds = self.undisturbed(schedules)
        if tuple(schedules) not in self.seen:
            seconds *= 1.5  # fills caches
        self.seen.add(tuple(schedules))
        self.sizes.append(len(schedules))
        self.now += seconds
        return seconds


@pytest.mark.parametrize(
    ("image", "sizes"),
    [
        (0.0001, [1, 1, 4, 4, 4, 4, 12, 12, 12, 12, 32, 32, 32]),
        (0.005, [1, 1, 4, 4, 4, 4, 12]),
        (0.02, [1, 1, 4, 4, 4]),
        (0.1, [1, 1, 4, 4, 4]),
    ],
)
def test_slow_models_are_calibrated_with_smaller_batches(
    image: float, sizes: list[int], runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, image)
    samples = measure_costs(runner, LEVELS, 32)
    assert [len(sample.schedules) for sample in samples] == sizes
    assert runs.sizes == 2 * sizes
    # The first run of each does not count.
    expected = [runs.undisturbed(sample.schedules) for sample in samples]
    assert [sample.seconds for sample in samples] == expected


@pytest.mark.parametrize(("image", "sizes"), [(0.5, [1, 1, 4]), (1.5, [1, 1]), (60.0, [1, 1])])
def test_a_very_slow_model_runs_no_batch_twice(
    image: float, sizes: list[int], runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, image)
    samples = measure_costs(runner, LEVELS, 32)
    assert runs.sizes == sizes
    assert [sample.schedules[0] for sample in samples][:2] == [LEVELS[0], LEVELS[-1]]


def test_a_model_without_levels_is_calibrated_by_single_images(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, 0.0001)
    measure_costs(runner, LEVELS[:1], 1)
    assert runs.sizes == [1, 1]


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
    batches = list(calibration_batches(LEVELS, 6))
    assert [sample.schedules for sample in samples] == batches[: len(samples)]
    assert len(samples) >= 5
    calibration = Calibration(model_info(runner, ()).geometry, samples)
    assert calibration.predict(LEVELS[:1] * 6) > 0


def test_recorded_graphs_are_timed(runner: Runner) -> None:
    samples = measure_costs(runner, LEVELS, 6, buckets=(1, 4, 6))
    assert [sample.schedules for sample in samples] == list(
        graph_calibration_batches(LEVELS, 6, (1, 4, 6))
    )
