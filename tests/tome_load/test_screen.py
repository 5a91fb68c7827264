"""A run is summarized in one line, and its report has a row for each outcome."""

from __future__ import annotations

from typing import Any

import pytest

from tome_load.record import Record
from tome_load.report import LoadReport
from tome_load.screen import print_report, summarize
from tome_load.spec import LoadSpec
from tome_load.uploads import Upload


def spec(**options: Any) -> LoadSpec:
    return LoadSpec("http://x/", (Upload("a.png", b"x"),), **options)


@pytest.mark.parametrize(
    ("options", "summary"),
    [
        (
            {"rate": 2.5, "duration": 8, "warmup": 1, "r": ("0", "16:-1")},
            "r=0 or 16:-1: open loop, 2.5 requests/s, poisson, 8 s after 1 s of warm-up",
        ),
        ({"connections": 4, "requests": 9}, "r=default: closed loop of 4, 9 requests"),
    ],
)
def test_a_load_is_summarized_in_one_line(options: dict[str, Any], summary: str) -> None:
    assert summarize(spec(**options)) == f"http://x/classify, {summary}"


def test_a_report_has_a_row_for_each_outcome(capfd: pytest.CaptureFixture[str]) -> None:
    records = [
        Record(0, 0, "", 0.0, 0.0, 0.1, status=200, used="16:-1", tokens=11, batch=1),
        Record(1, 0, "", 1.0, 1.0, 1.02, status=503, reason="queue-full"),
        Record(2, 0, "", 2.0, 2.0, 4.0, failure="timeout"),
    ]
    load = spec(rate=1, duration=4, deadline_ms=200)
    report = LoadReport.of(load, records, started=0.0, cpu_seconds=0.001, connections=3)
    print_report(report)
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    for row in (
        ["sent", "3", "100.0%", "0.8"],
        ["answered", "1", "33.3%", "0.2"],
        ["answered", "within", "200", "ms", "1", "33.3%", "0.2"],
        ["status", "503", "1", "33.3%", "0.2"],
        ["no", "answer:", "timeout", "1", "33.3%", "0.2"],
        ["refusal", *["20.0"] * 7],
        ["reasons", "given:", "queue-full", "1"],
    ):
        assert row in rows
    assert ["r", "used:", "16.00", "on", "average", "(16:-1:", "100%)"] in rows
