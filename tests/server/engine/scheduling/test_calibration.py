"""The calibrated cost model, on a made-up device that runs operator by operator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.calibration import Calibration, Sample
from server.latency.cost import CostFeatures, CostModel, Geometry, batch_features
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

GEOMETRY = Geometry(17, 1, 3, Cost(100_000, (BlockCost(30_000, 50_000, 70, 10),) * 3, prefix=1))
TRUE = CostFeatures(
    host=0.004,
    host_merging_blocks=0.0002,
    groups=0.001,
    tokens=0.02,
    linear=0.3,
    pairs=0.5,
    tokens_in_merging_blocks=0.03,
)
R = [Schedule.constant(r) for r in (0, 2, 4, 8)]


def seconds(*schedules: Schedule, factor: float = 1.0) -> float:
    batch = batch_features([GEOMETRY.image_cost(schedule) for schedule in schedules])
    return factor * CostModel(TRUE).seconds(batch)


def sample(*schedules: Schedule, factor: float = 1.0) -> Sample:
    return Sample(schedules, seconds(*schedules, factor=factor))


WARMUP = [
    *(sample(*[r] * size) for r in R for size in (1, 2, 5, 8)),
    sample(*R),
    sample(*R, *R),
    sample(R[0], R[3]),
]


@given(st.lists(st.sampled_from(R), min_size=1, max_size=20))
def test_batches_that_were_never_timed_are_predicted(schedules: list[Schedule]) -> None:
    predicted = Calibration(GEOMETRY, WARMUP).predict(schedules)
    assert predicted == pytest.approx(seconds(*schedules), rel=0.02)


def test_a_disturbed_run_of_the_warmup_does_not_count() -> None:
    disturbed = [*WARMUP[:4], sample(*[R[0]] * 8, factor=6), *WARMUP[4:]]
    predicted = Calibration(GEOMETRY, disturbed).predict(R)
    assert predicted == pytest.approx(seconds(*R), rel=0.02)


def test_contention_is_detected_within_some_batches_and_forgotten_again() -> None:
    calibration = Calibration(GEOMETRY, WARMUP)
    for factor in (3.0, 1.0):
        for _ in range(9):
            calibration.observe(calibration.features(R), seconds(*R, factor=factor))
        assert calibration.cost_model.contention == pytest.approx(factor, rel=0.1)
        # It applies to all batches alike, also to those that have not run.
        assert calibration.predict(R[:1]) == pytest.approx(seconds(R[0], factor=factor), rel=0.1)


def test_a_delay_that_clients_add_to_every_batch_is_predicted() -> None:
    """Clients in a closed loop send their next images while the other batch runs, however short."""
    calibration = Calibration(GEOMETRY, WARMUP)
    errors = []
    for turn in range(40):
        batch = R * (7, 1)[turn % 2]
        measured = 1.1 * seconds(*batch) + seconds(*R) / 2
        errors.append(abs(calibration.predict(batch) / measured - 1))
        calibration.observe(calibration.features(batch), measured)
    assert max(errors[12:]) < 0.05


@given(st.lists(st.floats(0.01, 100), max_size=7))
def test_a_minority_of_outliers_changes_little(factors: list[float]) -> None:
    calibration = Calibration(GEOMETRY, WARMUP)
    for index in range(8 + len(factors)):
        factor = factors[index // 2] if index % 2 and index // 2 < len(factors) else 1.0
        calibration.observe(calibration.features(R), seconds(*R, factor=factor))
    assert calibration.predict(R) == pytest.approx(seconds(*R), rel=0.3)
    assert calibration.cost_model.margin <= 1


def test_batches_correct_the_coefficients() -> None:
    """The warm-up was wrong about r=0, which contention, common to all batches, cannot explain."""
    wrong = [
        sample(*one.schedules, factor=1.3 if one.schedules[0] == R[0] else 1.0) for one in WARMUP
    ]
    calibration = Calibration(GEOMETRY, wrong)

    def error() -> float:
        plain, tokens_in_merging_blocks = (
            calibration.predict([one] * 8) / seconds(*[one] * 8) for one in (R[0], R[3])
        )
        return abs(plain / tokens_in_merging_blocks - 1)

    before = error()
    random = np.random.default_rng(0)
    for _ in range(400):
        batch = [R[random.integers(4)]] * 8
        calibration.observe(calibration.features(batch), seconds(*batch))
    assert error() < before / 3


@given(st.lists(st.sampled_from(R), min_size=1, max_size=20), st.floats(0.1, 10))
def test_the_time_of_a_batch_at_r0_keeps_the_contention_of_the_batch(
    schedules: list[Schedule], factor: float
) -> None:
    calibration = Calibration(GEOMETRY, WARMUP)
    images = len(schedules)
    r0_seconds = calibration.r0_seconds(
        calibration.features(schedules), images, seconds(*schedules, factor=factor)
    )
    assert r0_seconds == pytest.approx(seconds(*R[:1] * images, factor=factor), rel=0.05)
    assert calibration.r0_seconds(calibration.features(R[:1] * 3), 3, 0.7) == pytest.approx(0.7)


def test_the_margin_follows_the_errors_of_predictions() -> None:
    calibration = Calibration(GEOMETRY, WARMUP)
    margins = []
    for noise in (0.0, 0.08, 0.3):
        random = np.random.default_rng(0)
        for _ in range(300):
            factor = float(random.lognormal(0, noise))
            calibration.observe(calibration.features(R), seconds(*R, factor=factor))
        margins.append(calibration.cost_model.margin)
    assert margins[0] == pytest.approx(0.05)  # the least: no machine is as regular as that
    assert 0.06 < margins[1] < 0.2 < margins[2] <= 1
    assert calibration.cost_model.undisturbed().margin == 0
