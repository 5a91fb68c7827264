from __future__ import annotations

import json
from typing import Any

import pytest

from server.load.pictures import Picture
from server.load.record import Record, digest
from server.load.report import LoadReport, mean_r
from server.load.spec import LoadSpec


def spec(**more: Any) -> LoadSpec:
    return LoadSpec(
        "http://x", (Picture("a.png", b"x"),), **{"rate": 2, "duration": 8, "key": "secret", **more}
    )


def record(
    number: int, intended: float, sent: float, done: float, status: int = 200, **more: Any
) -> Record:
    return Record(number, 0, "", intended, sent, done, status, **more)


def test_a_late_start_costs_the_goodput() -> None:
    records = [
        record(0, 0.0, 0.0, 0.1, used="16", tokens=11, batch=1),
        record(
            1, 1.0, 1.3, 1.4, used="0", tokens=197, batch=3
        ),  # soon answered, but sent 0.3 s late
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
    assert (report.response.max, report.service.max) == (pytest.approx(400), pytest.approx(100))
    assert report.refused.p99 == pytest.approx(20)
    assert (report.r_mean, report.tokens_mean, report.batch_mean) == (8, 104, 2)

    early, late = report.windows
    assert (early.start, early.requests, early.good, early.r_mean, early.goodput_per_s) == (
        0,
        2,
        1,
        8,
        0.2,
    )
    assert (late.start, late.requests, late.refused, late.r_mean, late.p99_ms) == (
        5,
        2,
        1,
        None,
        None,
    )

    text = json.dumps(report.as_json())
    assert "secret" not in text and '"a.png"' in text
    assert json.loads(text)["goodput_per_s"] == report.goodput_per_s
    assert len(json.loads(text)["windows"]) == 2


def test_nothing_was_sent() -> None:
    report = LoadReport.of(spec(), [], started=0, cpu_seconds=0, connections=0)
    assert (report.requests, report.response, report.windows, report.good_share) == (0, None, (), 0)


def test_the_mean_of_r_over_forms_of_schedules() -> None:
    used = ["16", "8:-1", "30,0,6"]
    assert mean_r([record(0, 0, 0, 0, used=text) for text in used]) == 12


def test_bodies_are_read_where_they_are_ours() -> None:
    answer = {"model": "m", "r": "16", "tokens": {"input": 197, "output": 11}, "batch_size": 7}
    found = record(0, 0, 0, 0, body=json.dumps(answer).encode())
    found.read_answer()
    assert (found.used, found.tokens, found.batch) == ("16", 11, 7)
    problem = {"type": "urn:tome:problem:overloaded", "reason": "draining"}
    for body, reason in (
        (problem, "draining"),
        ({"type": problem["type"]}, "overloaded"),
        ([], ""),
        ("{", ""),
    ):
        found = record(0, 0, 0, 0, status=503, body=json.dumps(body).encode())
        found.read_answer()
        assert found.reason == reason


def test_a_digest_is_of_the_result_alone() -> None:
    def body(**more: Any) -> bytes:
        answer = {
            "model": "m",
            "r": "16",
            "predictions": [{"score": 0.5}],
            "batch_size": 1,
            "timing_ms": {"queue": 1},
        }
        return json.dumps(answer | more).encode()

    assert digest(body()) == digest(body(batch_size=2, timing_ms={"queue": 3}))
    assert digest(body()) != digest(body(predictions=[{"score": 0.25}]))
    with pytest.raises(ValueError, match="no answer"):
        digest(b"{}")
