"""What the last batches show of a busy machine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.slowdown import slowdown

SECONDS = st.floats(1e-4, 10)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=11))
def test_neither_is_negative_and_the_delay_is_in_all_batches_but_one(recent):
    contention, delay = slowdown(recent)
    assert contention > 0
    assert delay >= 0
    assert sum(seconds <= delay for _, seconds in recent) <= 1


@given(st.floats(0.5, 3), st.floats(0, 0.15), st.integers(0, 1))
def test_large_and_small_batches_in_turn_tell_contention_and_delay_apart(contention, delay, first):
    quiet = [(0.45, 0.08)[(index + first) % 2] for index in range(11)]
    found = slowdown([(each, contention * each + delay) for each in quiet])
    assert found == pytest.approx((contention, delay), abs=1e-6)


def test_batches_that_are_alike_have_no_delay():
    recent = [(0.4 + index / 1000, 0.5) for index in range(11)]
    assert slowdown(recent) == (pytest.approx(0.5 / 0.405), 0.0)


@given(st.floats(0.1, 100), st.integers(0, 10), st.sampled_from([0.0, 0.1]))
def test_an_outlier_changes_little(factor, where, delay):
    right = [(quiet, quiet + delay) for quiet in [0.4] * 7 + [0.1] * 4]
    recent = [
        (quiet, taken * (factor if index == where else 1))
        for index, (quiet, taken) in enumerate(right)
    ]
    contention, found = slowdown(recent)
    for quiet, taken in right:
        assert contention * quiet + found == pytest.approx(taken, rel=0.05)


@pytest.mark.parametrize(
    "sizes", [[0.4] * 10 + [0.1], [0.4] * 9 + [0.1] * 2, [0.4, 0.4, 0.1], [0.4, 0.1]]
)
def test_few_batches_or_few_of_another_size_show_no_delay(sizes):
    assert slowdown([(quiet, quiet + 0.1) for quiet in sizes])[1] == 0


def test_noise_is_no_delay():
    random = np.random.default_rng(0)
    delayed = 0
    for _ in range(200):
        quiet = random.choice([0.01, 0.02, 0.03], 11)
        contention, delay = slowdown(
            list(zip(quiet, quiet * random.lognormal(0, 0.1, 11), strict=True))
        )
        assert contention > 0.7
        delayed += delay > 0
    assert delayed < 5


def test_work_on_the_machine_that_slows_all_alike_is_no_delay():
    recent = [(size, 1.7 * size) for size in (0.1, 0.2, 0.4, 0.8) * 3]
    assert slowdown(recent) == (pytest.approx(1.7), pytest.approx(0, abs=1e-9))
