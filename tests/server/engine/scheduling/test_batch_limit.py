import itertools

from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.batch_limit import FIRST_PATIENCE, MOST_PATIENCE, BatchLimit


def batches_until(limit: BatchLimit, now: int) -> int:
    count = 0
    while limit.now < now:
        limit.went_well(limit.now)
        count += 1
        assert count < 100_000
    return count


def test_it_falls_at_once_and_comes_back_in_steps() -> None:
    limit = BatchLimit(32)
    assert limit.ran_out(8)
    assert limit.now == 8
    assert batches_until(limit, 9) == FIRST_PATIENCE
    assert limit.now == 12
    assert batches_until(limit, 32) == 5 * FIRST_PATIENCE
    assert not limit.went_well(32)


def test_small_batches_say_nothing() -> None:
    limit = BatchLimit(32)
    limit.ran_out(8)
    assert not any(limit.went_well(7) for _ in range(10_000))
    assert limit.now == 8


@given(st.integers(1, 64), st.integers(1, 64))
def test_where_only_so_many_fit_running_out_becomes_rare(most: int, fits: int) -> None:
    limit = BatchLimit(most)
    failures = []
    for number in range(5000):
        if limit.now > fits:
            limit.ran_out(fits)
            failures.append(number)
        else:
            limit.went_well(limit.now)
        assert 1 <= limit.now <= most
    between = [later - earlier for earlier, later in itertools.pairwise(failures)]
    assert between == sorted(between)
    assert bool(failures) == (fits < most)
    assert all(gap >= FIRST_PATIENCE for gap in between)
    assert not between or between[-1] >= MOST_PATIENCE
