"""What the last batches show of a busy machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.slowdown import slowdown

SECONDS = st.floats(1e-4, 10)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=11))
def test_neither_is_negative_and_the_delay_is_in_every_batch(recent):
    contention, delay = slowdown(recent)
    assert contention > 0
    assert 0 <= delay < min(seconds for _, seconds in recent)


@given(st.floats(0.5, 3), st.floats(0, 0.15), st.integers(0, 1))
def test_large_and_small_batches_in_turn_tell_contention_and_delay_apart(contention, delay, first):
    quiet = [(0.45, 0.08)[(index + first) % 2] for index in range(11)]
    found = slowdown([(each, contention * each + delay) for each in quiet])
    assert found == pytest.approx((contention, delay), abs=1e-6)


def test_batches_that_are_alike_have_no_delay():
    recent = [(0.4 + index / 1000, 0.5) for index in range(11)]
    assert slowdown(recent) == (pytest.approx(0.5 / 0.405), 0.0)


@given(st.floats(0.1, 100), st.integers(0, 10))
def test_an_outlier_changes_little(factor, where):
    seconds = [(each, each * (factor if index == where else 1)) for index, each in enumerate([0.4] * 8 + [0.1] * 3)]
    contention, delay = slowdown(seconds)
    for quiet in (0.4, 0.1):
        assert contention * quiet + delay == pytest.approx(quiet, rel=0.05)


def test_work_on_the_machine_that_slows_all_alike_is_no_delay():
    recent = [(size, 1.7 * size) for size in (0.1, 0.2, 0.4, 0.8) * 3]
    assert slowdown(recent) == (pytest.approx(1.7), pytest.approx(0, abs=1e-9))
