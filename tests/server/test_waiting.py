import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.costs import Estimate, Load
from server.waiting import Claim, answer_seconds, busy_seconds, retry_after

ESTIMATES = {
    "small": Estimate((0.5, 0.1, 1.0, 0.0, 0.0), contention=2.0, margin=0.5),
    "large": Estimate((1.0, 0.0, 0.0, 3.0, 0.0)),
}
SMALL, LARGE = Claim("small", Load(2.0, 1.0, 1.0), 0.0), Claim("large", Load(1.0, 1.0, 1.0), 0.0)


def test_a_queue_takes_what_its_images_and_its_batches_take() -> None:
    assert busy_seconds([], ESTIMATES, 4) == 0
    assert busy_seconds([SMALL], ESTIMATES, 4) == pytest.approx(2 * (0.6 + 2.0))
    assert busy_seconds([SMALL] * 5, ESTIMATES, 4) == pytest.approx(2 * (2 * 0.6 + 5 * 2.0))
    assert busy_seconds([SMALL, LARGE, LARGE], ESTIMATES, 4) == pytest.approx(2 * 2.6 + 1.0 + 2 * 3.0)


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


@given(st.floats(0, 1e9))
def test_retry_after_is_a_whole_number_of_seconds_within_bounds(seconds: float) -> None:
    assert retry_after(seconds) in range(1, 61)
    if 1 <= seconds <= 60:
        assert retry_after(seconds) == math.ceil(seconds)
