"""The maths of predictions, on made-up numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.calibration import Calibration, Sample
from server.latency.cost import Estimate, Features, Geometry, features, solve
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

GEOMETRY = Geometry(17, 1, 3, Cost(100_000, (BlockCost(30_000, 50_000, 70, 10),) * 3, prefix=1))
TRUE = Features(
    host=0.004, host_blocks=0.0002, groups=0.001, tokens=0.02, linear=0.3, pairs=0.5, merged=0.03
)
R = [Schedule.constant(r) for r in (0, 2, 4, 8)]


def seconds(*schedules: Schedule, factor: float = 1.0) -> float:
    return factor * Estimate(TRUE).seconds(features([GEOMETRY.load(one) for one in schedules]))


def sample(*schedules: Schedule, factor: float = 1.0) -> Sample:
    return Sample(schedules, seconds(*schedules, factor=factor))


WARMUP = [sample(*[r] * size) for r in R for size in (1, 2, 5, 8)] + [
    sample(*R),
    sample(*R, *R),
    sample(R[0], R[3]),
]


def test_features_are_exact() -> None:
    load = GEOMETRY.load(Schedule.constant(4))
    # 17, 13, 9 tokens enter a block; 13, 9, 5 leave merging
    assert load.tokens == pytest.approx(39 / 1e3)
    assert load.pairs == pytest.approx((17**2 + 13**2 + 9**2) / 1e6)
    assert load.linear == pytest.approx((100_000 + 39 * 30_000 + 27 * 50_000) / 1e9)
    assert (load.merged, load.blocks) == (pytest.approx(39 / 1e3), 3)
    part = GEOMETRY.load(Schedule.per_layer([0, 4]))
    assert (part.merged, part.blocks) == (pytest.approx(17 / 1e3), 1)
    both = features([load, load, GEOMETRY.load(Schedule.constant(0))])
    assert (
        both.host,
        both.host_blocks,
        both.groups,
        both.device,
        both.device_blocks,
        both.mixed,
    ) == (1, 3, 2, 0, 0, 0)
    assert both.tokens == pytest.approx(2 * load.tokens + 51 / 1e3)
    assert both.merged == pytest.approx(2 * load.merged)


@given(st.integers(0, 2**32), st.integers(5, 12))
def test_the_least_squares_solution_is_optimal_and_not_negative(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    a = random.uniform(0, 1, (rows, 5))
    b = random.uniform(-0.5, 1, rows)
    gram = a.T @ a
    moment = a.T @ b
    found = solve(gram, moment)
    assert (found >= 0).all()
    slope = gram @ found - moment
    # The conditions of Karush, Kuhn and Tucker: nothing gets better by growing, nor what is above 0
    # by shrinking.
    scale = np.sqrt(gram.diagonal())
    assert (slope / scale > -1e-3).all()
    assert np.abs(slope[found > 0] / scale[found > 0]).max(initial=0) < 1e-3


def test_a_feature_that_never_occurs_costs_nothing() -> None:
    gram = np.diag([2.0, 0.0, 1.0, 0.0, 0.0])
    moment = np.array([1.0, 0.0, 3.0, 0.0, 0.0])
    np.testing.assert_allclose(solve(gram, moment), [0.5, 0, 3, 0, 0], rtol=1e-4)


@given(st.lists(st.sampled_from(R), min_size=1, max_size=20))
def test_what_was_never_timed_is_predicted(schedules: list[Schedule]) -> None:
    assert Calibration(GEOMETRY, WARMUP).predict(schedules) == pytest.approx(
        seconds(*schedules), rel=0.02
    )


def test_a_run_that_was_disturbed_does_not_count() -> None:
    disturbed = [*WARMUP[:4], sample(*[R[0]] * 8, factor=6), *WARMUP[4:]]
    assert Calibration(GEOMETRY, disturbed).predict(R) == pytest.approx(seconds(*R), rel=0.02)


def test_a_busy_machine_is_noticed_within_some_batches_and_forgotten_again() -> None:
    calibration = Calibration(GEOMETRY, WARMUP)
    for factor in (3.0, 1.0):
        for _ in range(9):
            calibration.observe(calibration.features(R), seconds(*R, factor=factor))
        assert calibration.estimate.contention == pytest.approx(factor, rel=0.1)
        # It holds for all batches alike, those that have not run included.
        assert calibration.predict(R[:1]) == pytest.approx(seconds(R[0], factor=factor), rel=0.1)


def test_clients_that_come_in_turns_slow_the_small_batch_by_more() -> None:
    """Clients that wait for their answers send their next images while the other batch runs,
    however short it is.
    """
    calibration = Calibration(GEOMETRY, WARMUP)
    errors = []
    for turn in range(40):
        batch = R * (7, 1)[turn % 2]
        taken = 1.1 * seconds(*batch) + seconds(*R) / 2
        errors.append(abs(calibration.predict(batch) / taken - 1))
        calibration.observe(calibration.features(batch), taken)
    assert max(errors[12:]) < 0.05


@given(st.lists(st.floats(0.01, 100), max_size=7))
def test_a_minority_of_outliers_changes_little(factors: list[float]) -> None:
    calibration = Calibration(GEOMETRY, WARMUP)
    for index in range(8 + len(factors)):
        factor = factors[index // 2] if index % 2 and index // 2 < len(factors) else 1.0
        calibration.observe(calibration.features(R), seconds(*R, factor=factor))
    assert calibration.predict(R) == pytest.approx(seconds(*R), rel=0.3)
    assert calibration.estimate.margin <= 1


def test_coefficients_follow_what_batches_really_take() -> None:
    """The warm-up was wrong about r=0; contention cannot explain that, batches of both kinds can."""
    wrong = [
        sample(*one.schedules, factor=1.3 if one.schedules[0] == R[0] else 1.0) for one in WARMUP
    ]
    calibration = Calibration(GEOMETRY, wrong)

    def error() -> float:
        plain, merged = (
            calibration.predict([one] * 8) / seconds(*[one] * 8) for one in (R[0], R[3])
        )
        return abs(plain / merged - 1)

    before = error()
    random = np.random.default_rng(0)
    for _ in range(400):
        batch = [R[random.integers(4)]] * 8
        calibration.observe(calibration.features(batch), seconds(*batch))
    assert error() < before / 3


@given(st.lists(st.sampled_from(R), min_size=1, max_size=20), st.floats(0.1, 10))
def test_what_a_batch_would_have_taken_unmerged_is_free_of_contention(
    schedules: list[Schedule], factor: float
) -> None:
    calibration = Calibration(GEOMETRY, WARMUP)
    unmerged = calibration.unmerged(
        calibration.features(schedules), len(schedules), seconds(*schedules, factor=factor)
    )
    assert unmerged == pytest.approx(seconds(*R[:1] * len(schedules), factor=factor), rel=0.05)
    assert calibration.unmerged(calibration.features(R[:1] * 3), 3, 0.7) == pytest.approx(0.7)


def test_the_margin_is_what_predictions_are_exceeded_by() -> None:
    calibration = Calibration(GEOMETRY, WARMUP)
    margins = []
    for noise in (0.0, 0.08, 0.3):
        random = np.random.default_rng(0)
        for _ in range(300):
            calibration.observe(
                calibration.features(R), seconds(*R, factor=float(random.lognormal(0, noise)))
            )
        margins.append(calibration.estimate.margin)
    assert margins[0] == pytest.approx(0.05)  # no machine is as even as that
    assert 0.06 < margins[1] < 0.2 < margins[2] <= 1
    assert calibration.estimate.quiet().margin == 0
