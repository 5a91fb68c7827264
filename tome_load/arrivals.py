"""Arrival times of requests in an open loop: pure functions of a rate and a seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Literal

Arrivals = Literal["poisson", "constant", "bursty"]

# A burst takes one second on average and has three times the rate. The three seconds between bursts
# have a third of it. The mean rate is then the rate asked for.
BURST_SECONDS = 1.0
BURST_FACTOR = 3.0
CALM_SECONDS = 3.0
CALM_FACTOR = 1 / 3


def arrivals(process: Arrivals, rate: float, random: Random) -> Iterator[float]:
    """Yield times in seconds from 0, in order and without end, on average ``rate`` a second."""
    if process == "constant":
        return constant(rate)
    if process == "poisson":
        return poisson(rate, random)
    return bursty(rate, random)


def constant(rate: float) -> Iterator[float]:
    """Yield arrivals with equal gaps."""
    for number in itertools.count():
        yield number / rate


def poisson(rate: float, random: Random) -> Iterator[float]:
    """Yield arrivals of many independent clients, with exponential gaps."""
    now = 0.0
    while True:
        now += random.expovariate(rate)
        yield now


def bursty(rate: float, random: Random) -> Iterator[float]:
    """Yield Poisson arrivals whose rate alternates (a Markov-modulated Poisson process)."""
    calm = (CALM_SECONDS, CALM_FACTOR)
    burst = (BURST_SECONDS, BURST_FACTOR)
    start = 0.0
    for mean_seconds, factor in itertools.cycle((calm, burst)):
        end = start + random.expovariate(1 / mean_seconds)
        # Exponential gaps have no memory, so each phase may begin with a new gap.
        now = start + random.expovariate(rate * factor)
        while now < end:
            yield now
            now += random.expovariate(rate * factor)
        start = end
