"""Errors in OpenAI's form: which member is wrong, and which requests clients should repeat."""

from __future__ import annotations

import json

import pytest

from server.api.contract.problem_details import problem_response
from server.api.pipeline.rounds import Round
from server.errors import (
    BadImage,
    DeadlineExceeded,
    EngineLost,
    InferenceFailed,
    Overloaded,
    Refusal,
    RequestError,
    TooLarge,
    UnsupportedFormat,
)


def of_input(error: RequestError, inputs: int = 1) -> RequestError:
    Round([], [], total=inputs).name_input(error, inputs - 1)
    return error


@pytest.mark.parametrize(
    ("error", "parameter", "message"),
    [
        (of_input(BadImage("it is corrupt")), "input", "it is corrupt"),
        (of_input(TooLarge("too many pixels"), 2), "input", "input 1: too many pixels"),
        (of_input(InferenceFailed("the model failed"), 2), None, "input 1: the model failed"),
        (of_input(EngineLost("it was lost")), None, "it was lost"),
        (TooLarge("the body is too large"), None, "the body is too large"),
        (UnsupportedFormat("compressed bodies"), None, "compressed bodies"),
        (BadImage("no model", parameter="model"), "model", "no model"),
    ],
)
def test_the_input_is_at_fault_only_where_it_is(error, parameter, message):
    body = json.loads(bytes(problem_response(error, path="/v1/embeddings").body))
    assert body["error"]["param"] == parameter
    assert body["error"]["message"] == message


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (DeadlineExceeded("too late"), "false"),
        (InferenceFailed("the model failed"), "false"),
        (EngineLost("it was lost"), None),
        (Overloaded("full", reason=Refusal.QUEUE_FULL), None),
        (TooLarge("too large"), None),
    ],
)
def test_clients_repeat_what_may_succeed(error, header):
    response = problem_response(error, path="/v1/embeddings")
    assert response.headers.get("x-should-retry") == header
    assert "x-should-retry" not in problem_response(error, path="/v2/models/m/infer").headers
