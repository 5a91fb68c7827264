"""The speed-up over the last minute, of one engine and of several."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from server.metrics.collector import SharedCollector
from server.metrics.definitions import SPEEDUP
from server.metrics.memory import MetricsMemory
from server.metrics.series import SeriesWriter
from server.metrics.speedup import SpeedupWindow


class Engines:
    """Windows of several engines, and the ratio that a scrape exports, at a time of the test."""

    def __init__(self, count: int) -> None:
        self.now = 1000.0
        self._memory = MetricsMemory.create(workers=1, engines=count)
        self.windows = [self.start(index) for index in range(count)]

    def start(self, index: int) -> SpeedupWindow:
        return SpeedupWindow(SeriesWriter(self._memory.engine(index)), lambda: self.now)

    def ratio(self, model: str = "m") -> float | None:
        registry = CollectorRegistry()
        registry.register(SharedCollector(self._memory.regions(), lambda: self.now))
        return registry.get_sample_value("tome_speedup_ratio", {"model": model})


def test_the_speedup_covers_the_last_minute() -> None:
    engines = Engines(1)
    (window,) = engines.windows
    assert engines.ratio() is None
    for second in range(300):
        engines.now = 1000.0 + second
        window.add("m", 1.0, 1.0)
        window.add("m", 1.0, 3.0)
    assert engines.ratio() == 2.0
    engines.now += 30
    window.add("m", 58.0, 116.0 * 2)
    assert engines.ratio() == pytest.approx((30 * 4 + 232) / (30 * 2 + 58), rel=0.02)
    engines.now += 61
    assert engines.ratio() is None


def test_each_second_of_the_minute_counts_until_it_is_over() -> None:
    engines = Engines(1)
    for second in range(60):
        engines.windows[0].add("m", 1.0, 1.0 if second else 61.0)
        assert engines.ratio() == pytest.approx((second + 61) / (second + 1))
        engines.now += 1
    assert engines.ratio() == 1.0
    engines.windows[0].add("m", 60.0, 181.0)
    # 59 of the seconds before are at most a minute old: (59 + 181) / (59 + 60)
    assert engines.ratio() == pytest.approx(240 / 119)


def test_engines_and_their_successors_add_up() -> None:
    engines = Engines(2)
    engines.windows[0].add("m", 1.0, 2.0)
    engines.windows[1].add("m", 2.0, 7.0)
    engines.windows[1].add("n", 1.0, 1.5)
    assert engines.ratio() == 3.0
    engines.start(1).add("m", 1.0, 7.0)
    assert engines.ratio() == 4.0
    assert engines.ratio("n") == 1.5


def test_the_help_text_defines_the_speedup() -> None:
    assert "tome_r0_equivalent_seconds_total over tome_forward_seconds_total" in SPEEDUP.help_text
