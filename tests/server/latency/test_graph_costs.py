"""Predictions where CUDA graphs run some batches, and the choice of r where merging costs time, on
a made-up GPU.
"""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.adaptive_r import faster
from server.engine.scheduling.batch_builder import BatchBuilder, Bounds, Option, QueuedJob
from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.warmup import graph_kinds
from server.ipc.messages import Job
from server.latency.cost import Estimate, Features, Geometry, Recorded, binding, features
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

# ViT-B/16 at 224.
GEOMETRY = Geometry(
    197, 1, 12, Cost(116_000_000, (BlockCost(2_359_296, 4_718_592, 1_536, 64),) * 12, prefix=1)
)
LEVELS = [Schedule.constant(r) for r in (0, 4, 8, 12, 16)]
BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
RECORDED = Recorded(frozenset(map(GEOMETRY.load, LEVELS)), BUCKETS)
# Launching operators takes 1 ms, and 0.4 ms more in each block that merges; merging takes 0.1 ms a
# block at least.
TRUE = Features(
    host=0.001,
    host_blocks=0.0004,
    device=0.0006,
    device_blocks=0.0001,
    tokens=0.00001,
    linear=0.000005,
    pairs=0.00005,
    merged=0.00001,
    mixed=0.00001,
)
EXACT = Estimate(TRUE, margin=0.0, recorded=RECORDED)
ALL = replace(RECORDED, any=True)
ALL_EXACT = replace(EXACT, recorded=ALL)
ON_A_CPU = Estimate(Features(host=0.004, host_blocks=0.001, tokens=0.01, merged=0.01), margin=0.0)

ANY = st.sampled_from(
    [*LEVELS, Schedule.constant(3), Schedule.linear(16, -1), Schedule.per_layer([0, 0, 30])]
)
ALIKE = st.builds(lambda one, size: [one] * size, ANY, st.integers(1, 140))
BATCHES = ALIKE | st.lists(ANY, min_size=1, max_size=140)


def seconds(schedules: list[Schedule] | tuple[Schedule, ...]) -> float:
    return EXACT.seconds(features([GEOMETRY.load(one) for one in schedules], RECORDED))


def calibrated(noise: float = 0.0, exact: Estimate = EXACT) -> Calibration:
    source = random.Random(0)
    samples = []
    for kind in graph_kinds(LEVELS, 128, BUCKETS):
        taken = exact.seconds(features([GEOMETRY.load(one) for one in kind], exact.recorded))
        samples.append(Sample(kind, taken * source.lognormvariate(0, noise)))
    return Calibration(GEOMETRY, samples, exact.recorded)


CALIBRATED = calibrated()
NOISY = calibrated(0.03)
ALL_CALIBRATED = calibrated(exact=ALL_EXACT)


def test_the_gpu_is_one_on_which_merging_a_single_image_does_not_pay() -> None:
    assert seconds(LEVELS[-1:]) > 1.5 * seconds(LEVELS[:1])
    assert seconds(LEVELS[-1:] * 128) < 0.75 * seconds(LEVELS[:1] * 128)


@given(BATCHES)
def test_what_was_never_timed_is_predicted(schedules: list[Schedule]) -> None:
    assert CALIBRATED.predict(schedules) == pytest.approx(seconds(schedules), rel=0.02)
    assert NOISY.predict(schedules) == pytest.approx(seconds(schedules), rel=0.12)


def test_what_is_slower_alone_and_faster_in_full_batches_is_known_to_be() -> None:
    for calibration in (CALIBRATED, NOISY):
        plain, merged = (
            [calibration.predict([level] * size) for size in (1, 128)]
            for level in (LEVELS[0], LEVELS[-1])
        )
        assert plain[0] < merged[0]
        assert plain[1] > merged[1]


@given(st.sampled_from(LEVELS), st.integers(1, 128))
def test_a_batch_costs_what_its_bucket_costs(level: Schedule, images: int) -> None:
    bucket = min(size for size in BUCKETS if size >= images)
    assert CALIBRATED.predict([level] * images) == CALIBRATED.predict([level] * bucket)
    if bucket < 128:
        assert CALIBRATED.predict([level] * bucket) < CALIBRATED.predict([level] * (bucket + 1))


def test_beyond_the_buckets_and_of_other_schedules_nothing_is_recorded() -> None:
    load = GEOMETRY.load(LEVELS[1])
    other = GEOMETRY.load(Schedule.constant(3))
    assert [RECORDED.bucket(load, images) for images in (1, 17, 32, 33, 128, 129)] == [
        1,
        32,
        32,
        48,
        128,
        0,
    ]
    assert RECORDED.bucket(other, 1) == 0
    assert Recorded().bucket(load, 1) == 0
    assert features([load] * 3, RECORDED) == features([load] * 4, RECORDED)
    row = features([load] * 2 + [other], RECORDED)
    assert (row.host, row.host_blocks, row.groups, row.device, row.device_blocks) == (
        1,
        12,
        2,
        1,
        12,
    )
    assert row.mixed == row.tokens == pytest.approx(2 * load.tokens + other.tokens)
    assert features([other] * 2, RECORDED).mixed == 0


@given(BATCHES)
def test_where_graphs_run_any_mix_only_what_is_too_large_for_them_waits_for_the_host(
    schedules: list[Schedule],
) -> None:
    loads = [GEOMETRY.load(schedule) for schedule in schedules]
    row = features(loads, ALL)
    without = features(loads, RECORDED)
    assert bool(row.host) == (len(loads) > 128)
    assert row.sides()[1] == without.sides()[1]  # which pays for being mixed as before
    assert ALL_EXACT.seconds(row) <= EXACT.seconds(without)


@given(st.lists(ANY, min_size=1, max_size=128))
def test_what_was_never_timed_is_predicted_where_graphs_run_any_mix(
    schedules: list[Schedule],
) -> None:
    rows = features([GEOMETRY.load(one) for one in schedules], ALL)
    assert ALL_CALIBRATED.predict(schedules) == pytest.approx(ALL_EXACT.seconds(rows), rel=0.02)


def test_host_and_device_work_at_once() -> None:
    few, many = (
        features([GEOMETRY.load(Schedule.constant(3))] * size, RECORDED) for size in (1, 128)
    )
    assert binding(few, TRUE) == Features(host=1, host_blocks=12, groups=1)
    assert binding(many, TRUE) == many._replace(host=0, host_blocks=0, groups=0)
    assert EXACT.seconds(few) == pytest.approx(0.001 + 12 * 0.0004)


@given(BATCHES)
def test_a_batch_that_grows_image_by_image_costs_what_it_costs_whole(
    schedules: list[Schedule],
) -> None:
    for estimate in (EXACT, ALL_EXACT, ON_A_CPU):
        cutter = BatchBuilder(Bounds(200), 0.0)
        for number, schedule in enumerate(schedules):
            option = Option(schedule, 1.0, GEOMETRY.load(schedule))
            job = Job(number, number, "m", (schedule,), 1, 0.0)
            assert cutter.takes(QueuedJob(job, (option,), 0.0, binding=False), option, estimate)
        loads = [GEOMETRY.load(schedule) for schedule in schedules]
        assert cutter.seconds == pytest.approx(estimate.seconds(features(loads, estimate.recorded)))


@given(ANY, st.integers(1, 200))
def test_images_that_are_alike_cost_what_their_batch_costs(schedule: Schedule, images: int) -> None:
    load = GEOMETRY.load(schedule)
    for estimate in (EXACT, ALL_EXACT, Estimate(TRUE)):
        whole = estimate.seconds(features([load] * images, estimate.recorded))
        assert estimate.alike(load, images) == pytest.approx(whole)


def test_what_a_mixed_batch_would_have_taken_unmerged_is_what_a_graph_takes() -> None:
    mixed, alike = (CALIBRATED.features(schedules) for schedules in (LEVELS * 6, LEVELS[-1:] * 20))
    assert CALIBRATED.unmerged(mixed, 30, seconds(LEVELS * 6)) == pytest.approx(
        seconds(LEVELS[:1] * 30), rel=0.02
    )
    slow = CALIBRATED.unmerged(alike, 20, 2 * seconds(LEVELS[-1:] * 20))
    assert slow == pytest.approx(2 * seconds(LEVELS[:1] * 32), rel=0.02)


def test_coefficients_of_host_and_device_follow_their_own_batches() -> None:
    """The warm-up was wrong by a third about what launching takes."""
    kinds = list(graph_kinds(LEVELS, 128, BUCKETS))
    loads = [[GEOMETRY.load(one) for one in kind] for kind in kinds]
    slow = Estimate(TRUE._replace(host=0.0015, host_blocks=0.0006), recorded=RECORDED)
    samples = [
        Sample(kind, slow.seconds(features(load, RECORDED)))
        for kind, load in zip(kinds, loads, strict=True)
    ]
    calibration = Calibration(GEOMETRY, samples, RECORDED)
    source = random.Random(0)
    few = [LEVELS[0], LEVELS[-1]] * 2
    before = calibration.predict(few) / seconds(few)
    for _ in range(400):
        batch = few if source.random() < 0.5 else [source.choice(LEVELS)] * source.choice(BUCKETS)
        calibration.observe(calibration.features(batch), seconds(batch))
    assert before > 1.4
    assert calibration.predict(few) / seconds(few) < 1.1
    assert calibration.predict(LEVELS[:1] * 128) == pytest.approx(
        seconds(LEVELS[:1] * 128), rel=0.1
    )


@given(
    st.lists(ANY, min_size=1, unique=True),
    st.integers(1, 128),
    st.builds(Features, *[st.floats(0, 1)] * 10),
)
def test_every_option_is_faster_than_all_that_merge_less(
    choices: list[Schedule], images: int, coefficients: Features
) -> None:
    estimate = Estimate(coefficients, recorded=RECORDED)
    options = [Option(one, GEOMETRY.relative(one), GEOMETRY.load(one)) for one in choices]
    kept = faster(options, estimate, images)
    assert kept[0].work == max(option.work for option in options)
    times = [estimate.alike(option.load, images) for option in kept]
    assert all(later < earlier for earlier, later in pairwise(times))
    assert [option.work for option in kept] == sorted(
        (option.work for option in kept), reverse=True
    )
    for option in set(options) - set(kept):
        assert any(
            estimate.alike(one.load, images) <= estimate.alike(option.load, images) for one in kept
        )


def scheduler(*deadlines: float, choices: list[Schedule] = LEVELS, images: int = 128) -> Scheduler:
    made = Scheduler(Bounds(images), 1.0, lambda model: CALIBRATED)
    for number, deadline in enumerate(deadlines):
        made.add(Job(number, number, "m", tuple(choices), 1, 0.0, deadline))
    return made


def used(made: Scheduler) -> list[str]:
    return [str(placed.schedule) for placed in made.step(0.0).batch]


def test_a_full_queue_merges() -> None:
    assert used(scheduler(*[1.12 * seconds(LEVELS[-1:] * 128)] * 128)) == ["16"] * 128


def test_a_single_image_is_not_refused_for_what_merging_alone_would_cost() -> None:
    deadline = 1.3 * seconds(LEVELS[:1])
    assert deadline < seconds(LEVELS[-1:])
    assert used(scheduler(deadline)) == ["0"]


def test_where_full_batches_gain_nothing_by_merging_nothing_merges() -> None:
    assert used(scheduler(*[1.01 * seconds(LEVELS[-1:] * 2)] * 2, images=2)) == ["0"] * 2


def test_an_image_that_would_make_a_batch_a_slow_mixed_one_waits_for_the_first_one_s_deadline() -> (
    None
):
    made = scheduler(0.002, choices=LEVELS[:1])
    made.add(Job(1, 1, "m", (LEVELS[-1],), 1, 0.0, 0.1))
    assert seconds([LEVELS[0], LEVELS[-1]]) > 0.002
    assert used(made) == ["0"]
    assert used(made) == ["16"]
