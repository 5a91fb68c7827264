"""A report counts records, and its windows and JSON agree with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tome_load.record import Record
from tome_load.report import LoadReport, mean_r
from tome_load.spec import LoadSpec
from tome_load.uploads import Upload


def spec(**options: Any) -> LoadSpec:
    defaults = {"rate": 2, "duration": 8, "key": "secret"}
    return LoadSpec("http://x", (Upload("a.png", b"x"),), **{**defaults, **options})


def record(
    number: int, intended: float, sent: float, ended: float, status: int = 200, **fields: Any
) -> Record:
    return Record(number, 0, "", intended, sent, ended, status, **fields)


def test_a_request_that_is_sent_late_counts_less_goodput() -> None:
    records = [
        record(0, 0.0, 0.0, 0.1, used="16", tokens=11, batch=1),
        # Answered within 0.1 s, but sent 0.3 s late.
        record(1, 1.0, 1.3, 1.4, used="0", tokens=197, batch=3),
        record(2, 6.0, 6.0, 6.02, status=503, reason="queue-full"),
        Record(3, 0, "", 7.0, 7.0, 9.0, failure="timeout"),
    ]
    report = LoadReport.of(
        spec(deadline_ms=200), records, started=100.0, cpu_seconds=0.001, connections=2
    )
    assert (report.requests, report.answered, report.good) == (4, 2, 1)
    assert report.outcomes == {"200": 2, "503": 1, "timeout": 1}
    assert report.reasons == {"queue-full": 1}
    assert (report.seconds, report.good_share, report.goodput_per_s) == (9.0, 0.25, 1 / 9)
    assert report.response is not None and report.service is not None and report.refused is not None
    assert report.response.max == pytest.approx(400)
    assert report.service.max == pytest.approx(100)
    assert report.refused.p99 == pytest.approx(20)
    assert (report.r_mean, report.tokens_mean, report.batch_mean) == (8, 104, 2)

    early, late = report.windows
    assert (early.start, early.requests, early.good) == (0, 2, 1)
    assert (early.r_mean, early.goodput_per_s) == (8, 0.2)
    assert (late.start, late.requests, late.refused) == (5, 2, 1)
    assert (late.r_mean, late.p99_ms) == (None, None)

    text = json.dumps(report.as_json())
    assert "secret" not in text and '"a.png"' in text
    assert json.loads(text)["goodput_per_s"] == report.goodput_per_s
    assert len(json.loads(text)["windows"]) == 2


def test_a_run_without_requests_has_a_report() -> None:
    report = LoadReport.of(spec(), [], started=0, cpu_seconds=0, connections=0)
    assert (report.requests, report.response, report.windows, report.good_share) == (0, None, (), 0)


def test_the_mean_of_r_covers_all_forms_of_schedules() -> None:
    used = ["16", "8:-1", "30,0,6"]
    assert mean_r([record(0, 0, 0, 0, used=text) for text in used]) == 12
