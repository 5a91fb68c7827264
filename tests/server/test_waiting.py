import math

from hypothesis import given
from hypothesis import strategies as st

from server.waiting import next_rate, predicted_wait, retry_after

RATES = st.floats(0.01, 1e5)
IMAGES, SECONDS = st.integers(1, 1024), st.floats(1e-4, 1e3)


@given(IMAGES, SECONDS)
def test_the_first_batch_is_believed(images: int, seconds: float) -> None:
    assert next_rate(None, images, seconds, saturated=False) == images / seconds


@given(RATES, IMAGES, SECONDS, st.booleans())
def test_it_rises_at_once_and_falls_slowly(rate: float, images: int, seconds: float, saturated: bool) -> None:
    after, measured = next_rate(rate, images, seconds, saturated), images / seconds
    assert after is not None
    if measured >= rate:
        assert after == measured
    elif saturated:
        assert measured <= after <= rate
    else:  # a small batch on an idle device is slow per image, and no reason to refuse anything
        assert after == rate


def test_it_reaches_a_new_steady_state() -> None:
    rate: float | None = 100.0
    for _ in range(40):
        rate = next_rate(rate, 10, 1.0, saturated=True)
    assert rate is not None
    assert 10 < rate < 10.2


def test_a_batch_without_time_says_nothing() -> None:
    assert next_rate(5.0, 3, 0.0, saturated=True) == 5.0


@given(st.integers(0, 10_000), st.none() | RATES)
def test_nothing_ahead_or_nothing_known_is_no_wait(ahead: int, rate: float | None) -> None:
    wait = predicted_wait(ahead, rate)
    assert wait == (ahead / rate if rate else 0.0)
    assert predicted_wait(0, rate) == 0


@given(st.floats(0, 1e9))
def test_retry_after_is_a_whole_number_of_seconds_within_bounds(seconds: float) -> None:
    assert retry_after(seconds) in range(1, 61)
    if 1 <= seconds <= 60:
        assert retry_after(seconds) == math.ceil(seconds)
