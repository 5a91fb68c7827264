"""The cost model with CUDA graphs, and the choice of r if merging costs time, on a made-up GPU."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.options import Option, useful_options
from server.engine.scheduling.scheduler import Scheduler
from server.engine.warmup import graph_calibration_batches
from server.ipc.messages import Job
from server.latency.cost import CostFeatures, CostModel, Geometry, RecordedGraphs, batch_features
from server.latency.queue_model import Bounds
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

# ViT-B/16 at 224.
GEOMETRY = Geometry(
    197, 1, 12, Cost(116_000_000, (BlockCost(2_359_296, 4_718_592, 1_536, 64),) * 12, prefix=1)
)
LEVELS = [Schedule.constant(r) for r in (0, 4, 8, 12, 16)]
BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
RECORDED = RecordedGraphs(frozenset(map(GEOMETRY.image_cost, LEVELS)), BUCKETS)
# The launches of a batch take 1 ms, and 0.4 ms more per block that merges. On the device, merging
# takes at least 0.1 ms per block.
TRUE = CostFeatures(
    host=0.001,
    host_merging_blocks=0.0004,
    device=0.0006,
    device_merging_blocks=0.0001,
    tokens=0.00001,
    linear=0.000005,
    pairs=0.00005,
    tokens_in_merging_blocks=0.00001,
    mixed=0.00001,
)
EXACT = CostModel(TRUE, margin=0.0, recorded=RECORDED)
ALL = replace(RECORDED, runs_mixed=True)
ALL_EXACT = replace(EXACT, recorded=ALL)
ON_A_CPU = CostModel(
    CostFeatures(host=0.004, host_merging_blocks=0.001, tokens=0.01, tokens_in_merging_blocks=0.01),
    margin=0.0,
)

ANY = st.sampled_from(
    [*LEVELS, Schedule.constant(3), Schedule.linear(16, -1), Schedule.per_layer([0, 0, 30])]
)
ALIKE = st.builds(lambda one, size: [one] * size, ANY, st.integers(1, 140))
BATCHES = ALIKE | st.lists(ANY, min_size=1, max_size=140)


def seconds(schedules: list[Schedule] | tuple[Schedule, ...]) -> float:
    return EXACT.seconds(batch_features([GEOMETRY.image_cost(one) for one in schedules], RECORDED))


def calibrated(noise: float = 0.0, exact: CostModel = EXACT) -> Calibration:
    source = random.Random(0)
    samples = []
    for kind in graph_calibration_batches(LEVELS, 128, BUCKETS):
        taken = exact.seconds(
            batch_features([GEOMETRY.image_cost(one) for one in kind], exact.recorded)
        )
        samples.append(Sample(kind, taken * source.lognormvariate(0, noise)))
    return Calibration(GEOMETRY, samples, exact.recorded)


CALIBRATED = calibrated()
NOISY = calibrated(0.03)
ALL_CALIBRATED = calibrated(exact=ALL_EXACT)


def test_the_gpu_is_one_on_which_merging_a_single_image_does_not_pay() -> None:
    assert seconds(LEVELS[-1:]) > 1.5 * seconds(LEVELS[:1])
    assert seconds(LEVELS[-1:] * 128) < 0.75 * seconds(LEVELS[:1] * 128)


@given(BATCHES)
def test_batches_that_were_never_timed_are_predicted(schedules: list[Schedule]) -> None:
    assert CALIBRATED.predict(schedules) == pytest.approx(seconds(schedules), rel=0.02)
    assert NOISY.predict(schedules) == pytest.approx(seconds(schedules), rel=0.12)


def test_merging_is_predicted_to_be_slower_for_one_image_and_faster_in_full_batches() -> None:
    for calibration in (CALIBRATED, NOISY):
        plain, tokens_in_merging_blocks = (
            [calibration.predict([level] * size) for size in (1, 128)]
            for level in (LEVELS[0], LEVELS[-1])
        )
        assert plain[0] < tokens_in_merging_blocks[0]
        assert plain[1] > tokens_in_merging_blocks[1]


@given(st.sampled_from(LEVELS), st.integers(1, 128))
def test_a_batch_costs_what_its_bucket_costs(level: Schedule, images: int) -> None:
    bucket = min(size for size in BUCKETS if size >= images)
    assert CALIBRATED.predict([level] * images) == CALIBRATED.predict([level] * bucket)
    if bucket < 128:
        assert CALIBRATED.predict([level] * bucket) < CALIBRATED.predict([level] * (bucket + 1))


def test_no_graph_runs_larger_batches_or_other_schedules() -> None:
    image_cost = GEOMETRY.image_cost(LEVELS[1])
    other = GEOMETRY.image_cost(Schedule.constant(3))
    buckets = {images: RECORDED.bucket(image_cost, images) for images in (1, 17, 32, 33, 128, 129)}
    assert buckets == {1: 1, 17: 32, 32: 32, 33: 48, 128: 128, 129: 0}
    assert RECORDED.bucket(other, 1) == 0
    assert RecordedGraphs().bucket(image_cost, 1) == 0
    assert batch_features([image_cost] * 3, RECORDED) == batch_features([image_cost] * 4, RECORDED)
    row = batch_features([image_cost] * 2 + [other], RECORDED)
    assert (row.host, row.host_merging_blocks, row.groups) == (1, 12, 2)
    assert (row.device, row.device_merging_blocks) == (1, 12)
    assert row.mixed == row.tokens == pytest.approx(2 * image_cost.tokens + other.tokens)
    assert batch_features([other] * 2, RECORDED).mixed == 0


@given(BATCHES)
def test_if_graphs_run_mixed_batches_only_larger_ones_wait_for_the_host(
    schedules: list[Schedule],
) -> None:
    image_costs = [GEOMETRY.image_cost(schedule) for schedule in schedules]
    row = batch_features(image_costs, ALL)
    without = batch_features(image_costs, RECORDED)
    assert bool(row.host) == (len(image_costs) > 128)
    assert (
        row.host_and_device()[1] == without.host_and_device()[1]
    )  # on the device, a mixed batch costs the same
    assert ALL_EXACT.seconds(row) <= EXACT.seconds(without)


@given(st.lists(ANY, min_size=1, max_size=128))
def test_batches_that_were_never_timed_are_predicted_if_graphs_run_mixed_batches(
    schedules: list[Schedule],
) -> None:
    batch = batch_features([GEOMETRY.image_cost(one) for one in schedules], ALL)
    assert ALL_CALIBRATED.predict(schedules) == pytest.approx(ALL_EXACT.seconds(batch), rel=0.02)


def test_the_host_determines_the_time_of_one_image_and_the_device_that_of_a_full_batch() -> None:
    image_cost = GEOMETRY.image_cost(Schedule.constant(3))
    one = batch_features([image_cost], RECORDED)
    full = batch_features([image_cost] * 128, RECORDED)
    assert EXACT.seconds(one) == pytest.approx(0.001 + 12 * 0.0004)
    _, device = full.host_and_device()
    assert EXACT.seconds(full) == pytest.approx(device.dot(TRUE))


@given(ANY, st.integers(1, 200))
def test_the_time_of_equal_images_is_that_of_their_batch(schedule: Schedule, images: int) -> None:
    image_cost = GEOMETRY.image_cost(schedule)
    for cost_model in (EXACT, ALL_EXACT, CostModel(TRUE)):
        whole = cost_model.seconds(batch_features([image_cost] * images, cost_model.recorded))
        assert cost_model.uniform_batch_seconds(image_cost, images) == pytest.approx(whole)


def test_the_time_of_a_mixed_batch_at_r0_is_that_of_a_graph() -> None:
    mixed, alike = (CALIBRATED.features(schedules) for schedules in (LEVELS * 6, LEVELS[-1:] * 20))
    assert CALIBRATED.r0_seconds(mixed, 30, seconds(LEVELS * 6)) == pytest.approx(
        seconds(LEVELS[:1] * 30), rel=0.02
    )
    slow = CALIBRATED.r0_seconds(alike, 20, 2 * seconds(LEVELS[-1:] * 20))
    assert slow == pytest.approx(2 * seconds(LEVELS[:1] * 32), rel=0.02)


def test_coefficients_of_host_and_device_follow_their_own_batches() -> None:
    """The warm-up was wrong by a third about the time of kernel launches."""
    kinds = list(graph_calibration_batches(LEVELS, 128, BUCKETS))
    image_costs = [[GEOMETRY.image_cost(one) for one in kind] for kind in kinds]
    slow = CostModel(TRUE._replace(host=0.0015, host_merging_blocks=0.0006), recorded=RECORDED)
    samples = [
        Sample(kind, slow.seconds(batch_features(image_cost, RECORDED)))
        for kind, image_cost in zip(kinds, image_costs, strict=True)
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
    st.builds(CostFeatures, *[st.floats(0, 1)] * 10),
)
def test_every_option_is_faster_than_all_options_that_merge_less(
    choices: list[Schedule], images: int, coefficients: CostFeatures
) -> None:
    cost_model = CostModel(coefficients, recorded=RECORDED)
    options = [Option(one, GEOMETRY.image_cost(one)) for one in choices]
    kept = useful_options(options, cost_model, images)
    shares = [option.image_cost.relative_flops for option in kept]
    assert shares[0] == max(option.image_cost.relative_flops for option in options)
    times = [cost_model.uniform_batch_seconds(option.image_cost, images) for option in kept]
    assert all(later < earlier for earlier, later in pairwise(times))
    assert shares == sorted(shares, reverse=True)
    for option in set(options) - set(kept):
        assert any(
            cost_model.uniform_batch_seconds(one.image_cost, images)
            <= cost_model.uniform_batch_seconds(option.image_cost, images)
            for one in kept
        )


def scheduler_with_jobs(
    *deadlines: float, choices: list[Schedule] = LEVELS, images: int = 128
) -> Scheduler:
    scheduler = Scheduler(Bounds(images), 1.0, {"m": CALIBRATED})
    for number, deadline in enumerate(deadlines):
        scheduler.add(Job(number, number, "m", tuple(choices), 1, 0.0, deadline))
    return scheduler


def next_schedules(scheduler: Scheduler) -> list[str]:
    return [str(placed.schedule) for placed in scheduler.take_next(0.0).batch]


def test_a_full_queue_merges() -> None:
    deadline = 1.12 * seconds(LEVELS[-1:] * 128)
    assert next_schedules(scheduler_with_jobs(*[deadline] * 128)) == ["16"] * 128


def test_a_single_image_is_not_refused_because_merging_would_be_too_slow() -> None:
    deadline = 1.3 * seconds(LEVELS[:1])
    assert deadline < seconds(LEVELS[-1:])
    assert next_schedules(scheduler_with_jobs(deadline)) == ["0"]


def test_nothing_merges_if_full_batches_do_not_gain_by_it() -> None:
    deadline = 1.01 * seconds(LEVELS[-1:] * 2)
    assert next_schedules(scheduler_with_jobs(deadline, deadline, images=2)) == ["0"] * 2


def test_an_image_does_not_join_if_the_mixed_batch_would_miss_the_first_deadline() -> None:
    scheduler = scheduler_with_jobs(0.002, choices=LEVELS[:1])
    scheduler.add(Job(1, 1, "m", (LEVELS[-1],), 1, 0.0, 0.1))
    assert seconds([LEVELS[0], LEVELS[-1]]) > 0.002
    assert next_schedules(scheduler) == ["0"]
    assert next_schedules(scheduler) == ["16"]
