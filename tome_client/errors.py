"""What can go wrong, as exceptions.

TomeError
├── Unreachable          no answer came: no connection, a lost one, or none within the time
├── BadAnswer            an answer came, but not one of this server's
└── ProblemError         the server's own problem (RFC 9457), with its status, type, title and detail
    ├── BadImage             400
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
    """All errors of this package."""


class Unreachable(TomeError):
    """No answer came."""


class BadAnswer(TomeError):
    """Something answered, but not as this server does."""


class ProblemError(TomeError):
    """The server said why there is no answer.

    Attributes:
        status: of HTTP.
        type: stable; the classes below follow it.
        title, detail: for people; ``detail`` says what was wrong with this request, and what is
            allowed.
        retry_after: seconds after which the server would like to be asked again, where it said so.
        request_id: what the server's log calls this request.
        members: all of the problem, also ``parameter``, ``reason`` or ``limit`` where it has them.
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
        super().__init__(f"{status} {self.title}" + (f": {self.detail}" if self.detail else ""))


class BadImage(ProblemError):
    """The image is empty, corrupt or truncated."""

    slug = "bad-image"


class BadRequest(ProblemError):
    """The request's body could not be understood."""

    slug = "bad-request"


class Unauthorized(ProblemError):
    """The server asks for an API key that it knows."""

    slug = "unauthorized"


class NotFound(ProblemError):
    """There is no such model or path."""

    slug = "not-found"


class MethodNotAllowed(ProblemError):
    """The path is not for this method."""

    slug = "method-not-allowed"


class Malformed(ProblemError):
    """What was sent is not HTTP; something between here and the server broke it."""

    slug = "malformed"


class SlowHeader(ProblemError):
    """The request's header took too long to arrive."""

    slug = "slow-header"


class HeaderTooLarge(ProblemError):
    """The request's header is too large."""

    slug = "header-too-large"


class SlowBody(ProblemError):
    """The image took too long to arrive."""

    slug = "slow-body"


class TooLarge(ProblemError):
    """The image has too many bytes or pixels."""

    slug = "too-large"


class UnsupportedFormat(ProblemError):
    """The image is of no format that the server decodes."""

    slug = "unsupported-format"


class InvalidParameter(ProblemError):
    """A parameter has a value that is not allowed; ``members["parameter"]`` says which."""

    slug = "invalid-parameter"


class InferenceFailed(ProblemError):
    """The model failed on this image."""

    slug = "inference-failed"


class Overloaded(ProblemError):
    """The server could not take the request, however often it was tried."""

    slug = "overloaded"


class EngineLost(ProblemError):
    """The server's model process was lost with the request, however often it was tried."""

    slug = "engine-lost"


class DeadlineExceeded(ProblemError):
    """The request's ``deadline_ms`` passed first."""

    slug = "deadline-exceeded"


def problem_of(response: httpx.Response) -> ProblemError:
    """The error that a response other than a success stands for, whoever sent it."""
    try:
        members = response.json()
    except ValueError:
        members = None
    if not isinstance(members, dict):  # a proxy's page, say
        members = {"title": response.reason_phrase}
    return problem(
        response.status_code,
        members,
        parse_retry_after(response.headers.get("retry-after")),
        response.headers.get("x-request-id", ""),
    )


def problem(
    status: int, members: Mapping[str, Any], retry_after: float | None = None, request_id: str = ""
) -> ProblemError:
    """The error of the class that the type of a problem says."""
    slug = str(members.get("type", "")).removeprefix(_PREFIX)
    kinds = {kind.slug: kind for kind in ProblemError.__subclasses__()}
    return kinds.get(slug, ProblemError)(status, members, retry_after, request_id)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from now that a ``Retry-After`` header asks for (RFC 9110, section 10.2.3), or None."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
