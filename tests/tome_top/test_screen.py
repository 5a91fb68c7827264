"""The screen shows what a frame has, and says what it has not."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from tome_top.frame import Frame
from tome_top.screen import draw, sparkline

URL = "http://x"


def frame(**fields: Any) -> Frame:
    idle: dict[str, Any] = {
        "seconds": 1.0,
        "images": {},
        "codes": {},
        "refused": {},
        "quantiles": {},
        "batch": None,
        "busy": 0.0,
        "speedup": {},
        "stages": {},
        "queue": None,
        "inflight": None,
        "engines": 0,
        "restarts": 0,
    }
    return Frame(**{**idle, **fields})


def printed(*arguments: Any, **options: Any) -> list[str]:
    console = Console(width=120, highlight=False)
    with console.capture() as captured:
        console.print(draw(URL, *arguments, **options))
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def test_an_error_stands_beside_the_url() -> None:
    assert printed(None, error="no answer") == ["http://x no answer"]


def test_an_idle_server_has_a_summary_only() -> None:
    assert printed(frame()) == [
        "http://x",
        "images 0.0/s latency none speed-up none",
        "batch none queue unknown images, unknown requests engines 0 ready, 0% busy, 0 restarts",
    ]


def test_a_busy_server_has_a_row_for_each_r_and_reason() -> None:
    lines = printed(
        frame(
            images={"other": 1.0, "16": 20.0, "8": 40.0},
            codes={"503": 0.5, "200": 60.0},
            refused={"queue-full": 0.5},
            quantiles={50: 0.041, 99: 0.097},
            speedup={"m": 1.5},
            stages={"queue": 0.0168, "decode": 0.0015},
        ),
        history=[0, 61],
    )
    assert lines[1] == "images 61.0/s latency p50 41 p99 97 ms speed-up 1.50x m"
    assert lines[3:] == [
        "images/s ▁█",
        "r images/s",
        f"8 40.0 {'█' * 30}",
        f"16 20.0 {'█' * 15}",
        "other 1.0 █",
        "stages decode 1.5 ms queue 16.8 ms",
        "refused queue-full 0.5/s",
        "status 200 60.0/s 503 0.5/s",
    ]


def test_a_sparkline_goes_from_0_to_the_largest_value() -> None:
    assert sparkline([0, 4, 8]) == "▁▅█"
    assert sparkline([1]) == sparkline([0, 0]) == ""
