"""The limit of a batch's images after memory ran out: its fall, its rise, and its back-off."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.batch_limit import FIRST_BACKOFF, MAX_BACKOFF, BatchLimit


def full_batches_until(limit: BatchLimit, images: int) -> int:
    """Run full batches until ``images`` are allowed, and return how many ran."""
    batches = 0
    while limit.current < images:
        limit.succeeded(limit.current)
        batches += 1
        assert batches < 100_000
    return batches


def test_the_limit_falls_at_once_and_rises_in_steps() -> None:
    limit = BatchLimit(32)
    assert limit.out_of_memory(8)
    assert limit.current == 8
    assert full_batches_until(limit, 9) == FIRST_BACKOFF
    assert limit.current == 12
    assert full_batches_until(limit, 32) == 5 * FIRST_BACKOFF
    assert not limit.succeeded(32)


def test_batches_below_the_limit_do_not_raise_it() -> None:
    limit = BatchLimit(32)
    limit.out_of_memory(8)
    assert not any(limit.succeeded(7) for _ in range(10_000))
    assert limit.current == 8


@given(st.integers(1, 64), st.integers(1, 64))
def test_where_memory_is_short_permanently_failures_become_rare(maximum: int, fits: int) -> None:
    limit = BatchLimit(maximum)
    failures = []
    for number in range(5000):
        if limit.current > fits:
            limit.out_of_memory(fits)
            failures.append(number)
        else:
            limit.succeeded(limit.current)
        assert 1 <= limit.current <= maximum
    gaps = [later - earlier for earlier, later in itertools.pairwise(failures)]
    assert gaps == sorted(gaps)
    assert bool(failures) == (fits < maximum)
    assert all(gap >= FIRST_BACKOFF for gap in gaps)
    assert not gaps or gaps[-1] >= MAX_BACKOFF
