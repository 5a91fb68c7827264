"""When is asked again: the policy alone, with a clock that tests set."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import httpx
import pytest

from tome_client import NotFound, Overloaded, Retry, Unreachable
from tome_client.errors import parse_retry_after
from tome_client.retrying import Pause, Request, RetryLoop

ASK = Request("GET", "/models", timeout=30.0)
LOST = httpx.ConnectError("refused")


def response(status: int, **headers: str) -> httpx.Response:
    slug = {503: "overloaded", 404: "not-found"}.get(status, "")
    body = {"type": f"urn:tome:problem:{slug}", "title": "title", "status": status}
    return httpx.Response(status, json=body, headers=headers)


def play(
    retry: Retry, replies: list[Any], draw: float = 1.0, takes: float = 0.0
) -> tuple[Any, list[float], list[float]]:
    """What comes of ``replies``, each after ``takes`` seconds; the pauses; and the time each
    request may take.
    """
    now = 100.0
    pauses = []
    timeouts = []
    steps = RetryLoop(retry, lambda: now, lambda: draw).request(ASK)
    reply = None
    try:
        while True:
            step = steps.send(reply)
            if isinstance(step, Pause):
                now += step.seconds
                pauses.append(step.seconds)
                reply = None
            else:
                timeouts.append(step.timeout)
                now += takes
                reply = replies.pop(0)
    except StopIteration as end:
        return end.value, pauses, timeouts
    except Exception as error:
        return error, pauses, timeouts


def test_success_at_once():
    found, pauses, timeouts = play(Retry(), [response(200)])
    assert (found.status_code, pauses, timeouts) == (200, [], [30.0])


def test_lost_connections_are_made_again_ever_later():
    found, pauses, _ = play(Retry(attempts=9, first=1, longest=5), [LOST] * 5 + [response(200)])
    assert found.status_code == 200
    assert pauses == [1, 2, 4, 5, 5]
    assert play(Retry(attempts=9, first=1), [LOST] * 3 + [response(200)], draw=0.5)[1] == [
        0.5,
        1,
        2,
    ]


@pytest.mark.parametrize("draw", [0.0, 0.3, 1.0])
def test_nobody_asks_before_retry_after(draw):
    found, pauses, _ = play(
        Retry(first=1), [response(503, **{"Retry-After": "7"}), response(200)], draw
    )
    assert found.status_code == 200
    assert pauses == [7 + draw]


def test_attempts_are_bounded():
    error, pauses, _ = play(Retry(attempts=3), [response(503)] * 9)
    assert isinstance(error, Overloaded)
    assert len(pauses) == 2
    error, pauses, _ = play(Retry(attempts=2), [LOST] * 9)
    assert isinstance(error, Unreachable)
    assert error.__cause__ is LOST
    assert len(pauses) == 1
    assert play(Retry(attempts=1), [LOST])[1] == []


def test_time_is_bounded():
    """Who would have to wait past the end is told at once; each request may take what is left."""
    error, pauses, timeouts = play(Retry(total=10), [response(503, **{"Retry-After": "11"})])
    assert isinstance(error, Overloaded)
    assert error.retry_after == 11
    assert pauses == []
    _, pauses, timeouts = play(Retry(total=40, first=1, attempts=9), [LOST] * 9, takes=15)
    assert timeouts == [30, 24, 7]
    assert pauses == [1, 2]


def test_other_errors_are_final():
    for status in (400, 404, 413, 422, 500, 504):
        error, pauses, _ = play(Retry(), [response(status)])
        assert error.status == status
        assert pauses == []
    assert isinstance(play(Retry(), [response(404)])[0], NotFound)
    assert len(play(Retry(), [response(429), response(200)])[1]) == 1


def test_retry_after_is_seconds_or_a_date():
    assert parse_retry_after("3") == 3
    assert parse_retry_after(None) is None
    assert parse_retry_after("soon") is None
    assert parse_retry_after("-1") is None
    before = time.time()
    date = email.utils.formatdate(before + 100, usegmt=True)  # of whole seconds
    seconds = parse_retry_after(date)
    assert seconds is not None
    assert 99 - (time.time() - before) <= seconds <= 100
    assert parse_retry_after(email.utils.formatdate(0, usegmt=True)) == 0
