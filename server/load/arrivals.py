"""When requests are meant to arrive, whatever the server does: pure functions of a rate and a seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Literal

Arrivals = Literal["poisson", "constant", "bursty"]

# Bursts last a second on average, at three times the rate; the three seconds between them run at a
# third of it.
BURST_SECONDS = 1.0
BURST_FACTOR = 3.0
CALM_SECONDS = 3.0
CALM_FACTOR = 1 / 3


def arrivals(kind: Arrivals, rate: float, random: Random) -> Iterator[float]:
    """Endless times in seconds from 0, in order, on average ``rate`` a second."""
    if kind == "constant":
        return (number / rate for number in itertools.count())
    return poisson(rate, random) if kind == "poisson" else bursty(rate, random)


def poisson(rate: float, random: Random) -> Iterator[float]:
    """Arrivals of many clients that know nothing of each other: gaps are exponential."""
    now = 0.0
    while True:
        now += random.expovariate(rate)
        yield now


def bursty(rate: float, random: Random) -> Iterator[float]:
    """Poisson arrivals whose rate switches between bursts and calm (a Markov-modulated Poisson process)."""
    now = 0.0
    start = 0.0
    for mean, factor in itertools.cycle(
        ((CALM_SECONDS, CALM_FACTOR), (BURST_SECONDS, BURST_FACTOR))
    ):
        end = start + random.expovariate(1 / mean)
        # Exponential gaps have no memory: what is left of one at a switch is as good as a new one.
        now = start + random.expovariate(rate * factor)
        while now < end:
            yield now
            now += random.expovariate(rate * factor)
        start = end
