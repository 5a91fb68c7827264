import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.latency.cost import Estimate, Features, Load, Recorded
from server.latency.queueing import WorkEstimate, answer_seconds, busy_seconds, retry_after

ESTIMATES = {
    "small": Estimate(Features(host=0.5, groups=0.1, tokens=1.0), contention=2.0, margin=0.5),
    "large": Estimate(Features(host=1.0, linear=3.0)),
}
SMALL = WorkEstimate("small", Load(2.0, 1.0, 1.0), 0.0)
LARGE = WorkEstimate("large", Load(1.0, 1.0, 1.0), 0.0)


def test_a_queue_takes_what_its_images_and_its_batches_take() -> None:
    assert busy_seconds([], ESTIMATES, 4) == 0
    assert busy_seconds([SMALL], ESTIMATES, 4) == pytest.approx(2 * (0.6 + 2.0))
    assert busy_seconds([SMALL] * 5, ESTIMATES, 4) == pytest.approx(2 * (2 * 0.6 + 5 * 2.0))
    assert busy_seconds([SMALL, LARGE, LARGE], ESTIMATES, 4) == pytest.approx(
        2 * 2.6 + 1.0 + 2 * 3.0
    )


def test_an_answer_takes_what_is_ahead_with_a_margin() -> None:
    whole = busy_seconds([LARGE, SMALL], ESTIMATES, 4)
    assert answer_seconds(SMALL, [LARGE], 0.0, ESTIMATES, 4) == pytest.approx(1.5 * whole)
    assert answer_seconds(SMALL, [LARGE], 1.0, ESTIMATES, 4) == pytest.approx(1.5 * (whole - 1))
    assert answer_seconds(SMALL, [LARGE], 100.0, ESTIMATES, 4) == 0


def test_the_margin_of_many_batches_is_smaller() -> None:
    whole = busy_seconds([SMALL] * 16, ESTIMATES, 4)
    assert answer_seconds(SMALL, [SMALL] * 15, 0.0, ESTIMATES, 4) == pytest.approx(1.25 * whole)


def test_with_nothing_ahead_it_is_the_time_on_a_quiet_machine() -> None:
    assert answer_seconds(SMALL, [], 0.0, ESTIMATES, 4) == pytest.approx(0.6 + 2.0)


def test_batches_that_graphs_run_are_filled_up_and_those_with_images_unlike_are_not() -> None:
    load = Load(1.0, 1.0, 1.0)
    unlike = Load(2.0, 1.0, 1.0, 2.0, 1)
    coefficients = Features(host=10.0, host_blocks=1.0, device=1.0, tokens=2.0, mixed=0.5)
    estimates = {"m": Estimate(coefficients, recorded=Recorded(frozenset({load}), (1, 4)))}
    same = WorkEstimate("m", load, 0.0)
    other = WorkEstimate("m", unlike, 0.0)
    assert answer_seconds(same, [], 0.0, estimates, 4) == pytest.approx(3)
    assert busy_seconds([same] * 2, estimates, 4) == pytest.approx(1 + 4 * 2)  # as long as four
    assert busy_seconds([same] * 9, estimates, 4) == pytest.approx(2 * 9 + 3)
    # One that is not recorded makes one batch a mixed one: the three others in it cost 2.5 each,
    # this one 5.
    assert busy_seconds([*[same] * 8, other], estimates, 4) == pytest.approx(
        9 + 3 + 3 * 2.5 + 5 + 1
    )
    assert busy_seconds([other, same], estimates, 4) == pytest.approx(11)
    assert busy_seconds([other] * 3, estimates, 4) == pytest.approx(1 + 3 * 4)


@given(st.floats(0, 1e9))
def test_retry_after_is_a_whole_number_of_seconds_within_bounds(seconds: float) -> None:
    assert retry_after(seconds) in range(1, 61)
    if 1 <= seconds <= 60:
        assert retry_after(seconds) == math.ceil(seconds)
