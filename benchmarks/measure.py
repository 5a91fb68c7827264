"""Times of several calls, taken in turns, so that drift of the machine affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# The idle threads of whoever ran last spin for some milliseconds before they sleep.
SETTLE_SECONDS = 0.01
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: every entry has one turn in each.
        turn_seconds: short calls are repeated within a turn until it has lasted so long; the turn's
            time is the median of its calls, so the first one, which finds the caches full of
            others' data, does not count.
        budget_seconds: no further round begins after so long, once there are three.
    """

    rounds: int = 7
    turn_seconds: float = 0.2
    budget_seconds: float = 90.0


def alternate(
    calls: Sequence[Callable[[], object]],
    plan: Plan,
    synchronize: Callable[[], None] = lambda: None,
    on_turn: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Seconds of each of ``calls`` in each round; every second round runs in reverse order.

    Args:
        synchronize: waits for the device.
        on_turn: called after each turn.
    """
    times: list[list[float]] = [[] for _ in calls]
    end = time.monotonic() + plan.budget_seconds
    for number in range(plan.rounds):
        if number >= MIN_ROUNDS and time.monotonic() > end:
            break
        order = range(len(calls))
        for index in order if number % 2 == 0 else reversed(order):
            times[index].append(_turn(calls[index], plan.turn_seconds, synchronize))
            on_turn()
    return times


def _turn(call: Callable[[], object], seconds: float, synchronize: Callable[[], None]) -> float:
    synchronize()
    time.sleep(SETTLE_SECONDS)
    taken: list[float] = []
    total = 0.0
    while not taken or total < seconds:
        started = time.perf_counter()
        call()
        synchronize()
        taken.append(time.perf_counter() - started)
        total += taken[-1]
    return statistics.median(taken)
