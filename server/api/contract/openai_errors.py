"""Errors in the form of OpenAI's API, which its clients turn into their exceptions."""

from __future__ import annotations

from typing import Any

from server.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidParameter,
    NotFound,
    RequestError,
    Unauthorized,
)

# OpenAI's clients send a request again after any 5xx. These would fail again, or come too late.
_NOT_TO_RETRY = (DeadlineExceeded, InferenceFailed)


def is_openai_path(path: str) -> bool:
    """Whether errors below ``path`` have OpenAI's form."""
    return path == "/v1" or path.startswith("/v1/")


def openai_status(error: RequestError) -> int:
    """Return the status of ``error``: its own, but for parameters 400, as clients expect."""
    return 400 if isinstance(error, InvalidParameter) else error.status


def openai_headers(error: RequestError) -> dict[str, str]:
    """Return the headers that say to OpenAI's clients whether to send the request again."""
    return {"x-should-retry": "false"} if isinstance(error, _NOT_TO_RETRY) else {}


def openai_error(error: RequestError) -> dict[str, dict[str, Any]]:
    """Return ``error`` as OpenAI's error object.

    ``code`` is the last part of the problem's type, or OpenAI's own word where there is one.
    """
    parameter = error.extensions.get("parameter")
    index = error.extensions.get("index")
    message = error.detail
    if index is not None:
        message = f"input {index}: {message}"
    if error.of_input and error.status < 500:
        parameter = "input"
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error" if error.status < 500 else "server_error",
            "param": parameter,
            "code": _code(error, parameter),
        }
    }


def _code(error: RequestError, parameter: str | None) -> str:
    if isinstance(error, Unauthorized):
        return "invalid_api_key"
    if isinstance(error, NotFound) and parameter == "model":
        return "model_not_found"
    return error.slug
