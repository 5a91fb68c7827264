"""The contention and the delay that recent batches show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.slowdown import slowdown

SECONDS = st.floats(1e-4, 10)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=11))
def test_neither_is_negative_and_all_batches_but_one_last_longer_than_the_delay(recent):
    contention, delay = slowdown(recent)
    assert contention > 0
    assert delay >= 0
    assert sum(seconds <= delay for _, seconds in recent) <= 1


@given(st.floats(0.5, 3), st.floats(0, 0.15), st.integers(0, 1))
def test_large_and_small_batches_in_turn_separate_contention_from_delay(contention, delay, first):
    recent = []
    for index in range(11):
        undisturbed = (0.45, 0.08)[(index + first) % 2]
        recent.append((undisturbed, contention * undisturbed + delay))
    assert slowdown(recent) == pytest.approx((contention, delay), abs=1e-6)


def test_batches_of_one_size_show_no_delay():
    recent = [(0.4 + index / 1000, 0.5) for index in range(11)]
    contention, delay = slowdown(recent)
    assert contention == pytest.approx(0.5 / 0.405)
    assert delay == 0.0


@given(st.floats(0.1, 100), st.integers(0, 10), st.sampled_from([0.0, 0.1]))
def test_an_outlier_changes_little(factor, position, delay):
    recent = [(undisturbed, undisturbed + delay) for undisturbed in [0.4] * 7 + [0.1] * 4]
    disturbed = list(recent)
    undisturbed, seconds = recent[position]
    disturbed[position] = (undisturbed, seconds * factor)
    contention, found_delay = slowdown(disturbed)
    for undisturbed, seconds in recent:
        assert contention * undisturbed + found_delay == pytest.approx(seconds, rel=0.05)


@pytest.mark.parametrize(
    "sizes", [[0.4] * 10 + [0.1], [0.4] * 9 + [0.1] * 2, [0.4, 0.4, 0.1], [0.4, 0.1]]
)
def test_few_batches_or_few_of_another_size_show_no_delay(sizes):
    _, delay = slowdown([(undisturbed, undisturbed + 0.1) for undisturbed in sizes])
    assert delay == 0


def test_noise_shows_no_delay():
    random = np.random.default_rng(0)
    with_delay = 0
    for _ in range(200):
        undisturbed = random.choice([0.01, 0.02, 0.03], 11)
        seconds = undisturbed * random.lognormal(0, 0.1, 11)
        contention, delay = slowdown(list(zip(undisturbed, seconds, strict=True)))
        assert contention > 0.7
        with_delay += delay > 0
    assert with_delay < 5


def test_other_work_that_slows_all_batches_alike_shows_no_delay():
    recent = [(undisturbed, 1.7 * undisturbed) for undisturbed in (0.1, 0.2, 0.4, 0.8) * 3]
    contention, delay = slowdown(recent)
    assert contention == pytest.approx(1.7)
    assert delay == pytest.approx(0, abs=1e-9)
