"""The warm-up: which batches it times, and what follows for the levels."""

import time
from collections.abc import Sequence

import pytest

from server.engine import warmup
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


def test_levels_report_tokens_and_flops(runner: Runner) -> None:
    calibration = Calibration(model_info(runner, ()).geometry, measure_costs(runner, LEVELS, 6))
    levels = describe_levels(runner, LEVELS, calibration, max_batch=6)
    assert [(level.r, level.tokens_out) for level in levels] == [("0", 17), ("4", 9), ("8", 5)]
    assert levels[0].relative_flops == levels[0].speedup == 1
    assert 1 > levels[1].relative_flops > levels[2].relative_flops > 0


class SimulatedRuns:
    """Batches that take what their FLOPs and a constant take, and longer when they first run."""

    CONSTANT = 0.0001

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch, image: float) -> None:
        self.geometry = model_info(runner, ()).geometry
        self.now = 0.0
        self.image = image
        self.sizes: list[int] = []
        self.seen: set[tuple[Schedule, ...]] = set()
        self.first_factor = 1.5
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(runner, "seconds", self.seconds)

    def undisturbed(self, schedules: Sequence[Schedule]) -> float:
        images = sum(self.geometry.image_cost(each).relative_flops for each in schedules)
        return self.CONSTANT + self.image * images

    def seconds(self, schedules: Sequence[Schedule]) -> float:
        seconds = self.undisturbed(schedules)
        if tuple(schedules) not in self.seen:
            seconds *= self.first_factor
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
        (0.15, [1, 1, 4, 4, 4]),
    ],
)
def test_slow_models_are_calibrated_with_smaller_batches(
    image: float, sizes: list[int], runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, image)
    samples = measure_costs(runner, LEVELS, 32)
    assert [len(sample.schedules) for sample in samples] == sizes
    assert runs.sizes == [1] + 2 * sizes
    # The first run of each does not count.
    expected = [runs.undisturbed(sample.schedules) for sample in samples]
    assert [sample.seconds for sample in samples] == expected


@pytest.mark.parametrize(("image", "sizes"), [(0.0001, [1, 4, 12, 32]), (0.05, [1, 4])])
def test_a_model_of_one_level_is_calibrated_in_time(
    image: float, sizes: list[int], runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, image)
    measure_costs(runner, LEVELS[:1], 32)
    assert runs.sizes == [1] + 2 * sizes


def test_a_largest_batch_of_many_images_is_not_run_before_the_model_is_ready(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, 0.002)
    measure_costs(runner, LEVELS, 1024)
    assert max(runs.sizes) == 12
    assert runs.now < 1


@pytest.mark.parametrize("image", [0.4, 60.0])
def test_a_very_slow_model_runs_single_images(
    image: float, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, image)
    samples = measure_costs(runner, LEVELS, 32)
    assert runs.sizes == [1, 1, 1, 1]  # twice at r=0
    assert [sample.schedules for sample in samples] == [
        (LEVELS[0],),
        (LEVELS[0], LEVELS[0]),
        (LEVELS[1],),
        (LEVELS[2],),
    ]
    assert len(measure_costs(runner, LEVELS[:1], 32)) == 2
    assert len(measure_costs(runner, LEVELS[:2], 32)) == 3


def test_what_the_very_first_run_loads_does_not_make_a_model_slow(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, 0.01)
    runs.first_factor = 100.0
    samples = measure_costs(runner, LEVELS, 32)
    assert [sample.seconds for sample in samples] == [
        runs.undisturbed(sample.schedules) for sample in samples
    ]
    assert len(samples) >= 5


@pytest.mark.parametrize("image", [0.0001, 0.005, 0.02, 0.15, 0.4])
def test_speedups_of_full_batches_are_predicted(
    image: float, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = SimulatedRuns(runner, monkeypatch, image)
    if image > warmup.SLOW_IMAGE_SECONDS:
        runs.first_factor = 1.0
    calibration = Calibration(runs.geometry, measure_costs(runner, LEVELS, 32))
    for level, schedule in zip(
        describe_levels(runner, LEVELS, calibration, 32), LEVELS, strict=True
    ):
        expected = runs.undisturbed(LEVELS[:1] * 32) / runs.undisturbed([schedule] * 32)
        assert level.speedup == pytest.approx(expected, rel=0.03)


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


def test_a_model_can_be_calibrated(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "SLOW_IMAGE_SECONDS", 100.0)  # whatever else the machine does
    samples = measure_costs(runner, LEVELS, 6)
    batches = list(calibration_batches(LEVELS, 6))
    assert [sample.schedules for sample in samples] == batches[: len(samples)]
    assert len(samples) >= 5
    calibration = Calibration(model_info(runner, ()).geometry, samples)
    assert calibration.predict(LEVELS[:1] * 6) > 0


def test_recorded_graphs_are_timed(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "GRAPH_FIRST_ROUND_SECONDS", 100.0)
    samples = measure_costs(runner, LEVELS, 6, buckets=(1, 4, 6))
    assert [sample.schedules for sample in samples] == list(
        graph_calibration_batches(LEVELS, 6, (1, 4, 6))
    )
