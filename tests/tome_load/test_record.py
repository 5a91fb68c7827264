"""Answers are read if this server wrote them, and compared by a digest of their results."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tome_load.record import Record, digest


def record(**fields: Any) -> Record:
    return Record(number=0, upload=0, r="", intended=1.0, **fields)


def test_times_count_from_the_plan_and_from_the_sending() -> None:
    sent = record(sent=1.25, ended=2.0)
    assert (sent.response, sent.service) == (1.0, 0.75)
    unsent = record(ended=2.0)
    assert (unsent.response, unsent.service) == (1.0, 1.0)


def test_an_answer_names_schedule_tokens_and_batch() -> None:
    answer = {"model": "m", "r": "16", "tokens": {"input": 197, "output": 11}, "batch_size": 7}
    answered = record(status=200, body=json.dumps(answer).encode())
    answered.read_answer()
    assert (answered.used, answered.tokens, answered.batch) == ("16", 11, 7)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"type": "urn:tome:problem:overloaded", "reason": "draining"}, "draining"),
        ({"type": "urn:tome:problem:overloaded"}, "overloaded"),
        ([], ""),
        ("{", ""),
    ],
)
def test_a_problem_document_names_the_reason(body: Any, reason: str) -> None:
    refused = record(status=503, body=json.dumps(body).encode())
    refused.read_answer()
    assert refused.reason == reason


def test_a_digest_depends_on_the_result_alone() -> None:
    def body(**members: Any) -> bytes:
        answer = {
            "model": "m",
            "r": "16",
            "predictions": [{"score": 0.5}],
            "batch_size": 1,
            "timing_ms": {"queue": 1},
        }
        return json.dumps(answer | members).encode()

    assert digest(body()) == digest(body(batch_size=2, timing_ms={"queue": 3}))
    assert digest(body()) != digest(body(predictions=[{"score": 0.25}]))


def test_what_is_not_an_answer_has_no_digest() -> None:
    with pytest.raises(ValueError, match="not the answer to one image"):
        digest(b"{}")
