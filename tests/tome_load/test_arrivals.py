"""Arrival times have the rate and the distribution that was asked for."""

from __future__ import annotations

import statistics
from itertools import islice, pairwise
from random import Random

import pytest

from tome_load.arrivals import Arrivals, arrivals


def gaps(process: Arrivals, rate: float, count: int = 40_000) -> list[float]:
    times = list(islice(arrivals(process, rate, Random(1)), count))
    assert times == sorted(times)
    return [after - before for before, after in pairwise(times)]


@pytest.mark.parametrize("process", ["poisson", "constant", "bursty"])
@pytest.mark.parametrize("rate", [0.5, 30.0])
def test_the_mean_rate_is_what_was_asked_for(process: Arrivals, rate: float) -> None:
    # At 30/s there are few bursts in as many arrivals, so their mean varies more.
    tolerance = 0.1 if process == "bursty" else 0.02
    assert 1 / statistics.mean(gaps(process, rate)) == pytest.approx(rate, rel=tolerance)


def test_constant_gaps_are_equal() -> None:
    assert list(islice(arrivals("constant", 4, Random(0)), 4)) == [0, 0.25, 0.5, 0.75]


def test_poisson_gaps_are_exponential_and_independent() -> None:
    found = gaps("poisson", 10)
    assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(1, abs=0.03)
    assert abs(statistics.correlation(found[:-1], found[1:])) < 0.02


def test_bursts_make_the_counts_per_second_vary() -> None:
    """The variance of counts per second over their mean is 1 for a Poisson process."""

    def dispersion(process: Arrivals) -> float:
        counts = [0] * 2000
        for when in arrivals(process, 20, Random(2)):
            if when >= len(counts):
                return statistics.variance(counts) / statistics.mean(counts)
            counts[int(when)] += 1
        raise AssertionError("arrivals are endless")

    assert dispersion("poisson") == pytest.approx(1, abs=0.15)
    assert dispersion("bursty") > 5


def test_the_same_seed_gives_the_same_times() -> None:
    first, again, other = (
        list(islice(arrivals("bursty", 9, Random(seed)), 50)) for seed in (3, 3, 4)
    )
    assert first == again != other
