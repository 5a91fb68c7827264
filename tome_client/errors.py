"""The exceptions of the client.

TomeError
├── Unreachable          no response: connection failed, was lost or timed out
├── BadAnswer            the response does not come from tome-serve
└── ProblemError         the server returned a problem (RFC 9457)
    ├── BadImage             400
    ├── BadMedia             400
    ├── BadRequest           400
    ├── Unauthorized         401
    ├── NotFound             404
    ├── MethodNotAllowed     405
    ├── Malformed            400
    ├── SlowHeader           408
    ├── HeaderTooLarge       431
    ├── SlowBody             408
    ├── TooLarge             413
    ├── UnsupportedFormat    415
    ├── InvalidParameter     422
    ├── ReloadFailed         422
    ├── InferenceFailed      500
    ├── Overloaded           503
    ├── EngineLost           503
    └── DeadlineExceeded     504
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Any

import httpx

_PREFIX = "urn:tome:problem:"


class TomeError(Exception):
    """Base class of all errors of this package."""


class Unreachable(TomeError):
    """The server sent no response."""


class BadAnswer(TomeError):
    """The response does not have the format of tome-serve."""


class ProblemError(TomeError):
    """The server returned an error response.

    Attributes:
        status: HTTP status code.
        type: stable problem type; each subclass stands for one type.
        title, detail: human-readable texts; ``detail`` describes the error of this request.
        retry_after: seconds in the ``Retry-After`` header, or None.
        request_id: ID of the request in the server's log.
        members: all members of the problem, including ``parameter``, ``reason`` or ``limit``.
    """

    slug = ""

    def __init__(
        self, status: int, members: Mapping[str, Any], retry_after: float | None, request_id: str
    ) -> None:
        self.status = status
        self.members = dict(members)
        self.retry_after = retry_after
        self.request_id = request_id
        self.type = str(members.get("type", "about:blank"))
        self.title = str(members.get("title", ""))
        self.detail = str(members.get("detail", ""))
        detail_suffix = f": {self.detail}" if self.detail else ""
        super().__init__(f"{status} {self.title}{detail_suffix}")


class BadImage(ProblemError):
    """The image is empty, corrupt or truncated."""

    slug = "bad-image"


class BadMedia(ProblemError):
    """The sound or the video is empty, corrupt or truncated."""

    slug = "bad-media"


class BadRequest(ProblemError):
    """The server cannot parse the request body."""

    slug = "bad-request"


class Unauthorized(ProblemError):
    """The API key is missing or invalid."""

    slug = "unauthorized"


class NotFound(ProblemError):
    """The model or path does not exist."""

    slug = "not-found"


class MethodNotAllowed(ProblemError):
    """The path does not support the HTTP method."""

    slug = "method-not-allowed"


class Malformed(ProblemError):
    """The server received an invalid HTTP request, for example from a broken proxy."""

    slug = "malformed"


class SlowHeader(ProblemError):
    """The request header did not arrive within the timeout."""

    slug = "slow-header"


class HeaderTooLarge(ProblemError):
    """The request header is too large."""

    slug = "header-too-large"


class SlowBody(ProblemError):
    """The request body did not arrive within the timeout."""

    slug = "slow-body"


class TooLarge(ProblemError):
    """The body has too many bytes, pixels, seconds or frames."""

    slug = "too-large"


class UnsupportedFormat(ProblemError):
    """The format is not supported, or is of another modality than the model takes."""

    slug = "unsupported-format"


class InvalidParameter(ProblemError):
    """A parameter is invalid; ``members["parameter"]`` is its name."""

    slug = "invalid-parameter"


class ReloadFailed(ProblemError):
    """The catalog cannot be served as it is now; the models of before serve on."""

    slug = "reload-failed"


class InferenceFailed(ProblemError):
    """The model failed on this image."""

    slug = "inference-failed"


class Overloaded(ProblemError):
    """The server was overloaded, and all retries failed."""

    slug = "overloaded"


class EngineLost(ProblemError):
    """The engine process was lost during the request, and all retries failed."""

    slug = "engine-lost"


class DeadlineExceeded(ProblemError):
    """The request did not complete within ``deadline_ms``."""

    slug = "deadline-exceeded"


def problem_from_response(response: httpx.Response) -> ProblemError:
    """Return the error of an error response, from the server or a proxy."""
    try:
        members = response.json()
    except ValueError:
        members = None
    if not isinstance(members, dict):  # for example the error page of a proxy
        members = {"title": response.reason_phrase}
    return problem_from_members(
        response.status_code,
        members,
        parse_retry_after(response.headers.get("retry-after")),
        response.headers.get("x-request-id", ""),
    )


def problem_from_members(
    status: int, members: Mapping[str, Any], retry_after: float | None = None, request_id: str = ""
) -> ProblemError:
    """Return an error of the class that belongs to the problem's type."""
    slug = str(members.get("type", "")).removeprefix(_PREFIX)
    classes = {subclass.slug: subclass for subclass in ProblemError.__subclasses__()}
    error_class = classes.get(slug, ProblemError)
    return error_class(status, members, retry_after, request_id)


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds in a ``Retry-After`` header (RFC 9110, section 10.2.3), or None."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
