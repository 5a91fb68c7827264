"""All errors of the server, and what the server does with each.

ConfigError              start-up fails with the message
EngineStartError         an engine process fails to start; after several failures in a row the
                         engine is given up. The server exits if all engines are given
                         up, or if an engine reports a mistake in the configuration
DeviceLost               every operation of a device fails; its engine process exits
UnsafeAcceleration       an acceleration breaks its device; its engine process exits, and the next
                         process starts without that acceleration
RequestError             one request fails, as ``application/problem+json`` (RFC 9457); its
                         subclasses, below in the order of their status, are all that it can fail
                         with

Messages are written for the client. They never contain the text of a library's exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Refusal(StrEnum):
    """Why the server cannot take a request that it could take at another time.

    It is ``reason`` in the problem of an `Overloaded`, and the label of ``tome_rejected_total``.
    """

    QUEUE_FULL = "queue-full"
    MEMORY_FULL = "memory-full"
    DEADLINE = "deadline"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_READY = "not-ready"
    DRAINING = "draining"
    TOO_MANY_CONNECTIONS = "too-many-connections"
    IDLE_CONNECTION = "idle-connection"


class ConfigError(Exception):
    """The configuration is invalid: a missing file, a wrong shape, an unknown name.

    The message says what to do.
    """


class EngineStartError(Exception):
    """The engine process ended or failed before it was ready. The message says why.

    Attributes:
        explained: the engine itself reported the reason, so another start would fail in the same
            way.
        safer: the `server.ipc.messages.Accelerations` to start with next; None where nothing is
            known to help.
    """

    def __init__(self, message: str, *, explained: bool = False, safer: Any = None) -> None:
        super().__init__(message)
        self.explained = explained
        self.safer = safer


class ApiStartError(Exception):
    """An API process ended or failed before it could accept connections. The message says why."""


class DeviceLost(Exception):
    """Every operation of the device fails until the process that uses it has ended."""


class UnsafeAcceleration(Exception):
    """An acceleration made its device unusable for this process. The message says which, and how.

    Attributes:
        safer: the `server.ipc.messages.Accelerations` that a new process should start with.
    """

    def __init__(self, message: str, safer: Any) -> None:
        super().__init__(message)
        self.safer = safer


class RequestError(Exception):
    """One request fails with ``status``; ``slug`` is the stable last part of the problem's type.

    Args:
        detail: one sentence for the client: what is wrong, and what is allowed.
        retry_after: seconds after which the client may retry.
        headers: of the response.
        extensions: further members of the problem (RFC 9457, section 3.2), such as the invalid
            ``parameter``.

    Attributes:
        of_input: whether one of the inputs failed, where they fail as one request.
    """

    status = 500
    slug = "internal"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        detail = _writable(detail)
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        self.of_input = False
        self.extensions = {
            name: _writable(value) if isinstance(value, str) else value
            for name, value in extensions.items()
        }

    @property
    def refused_for(self) -> str | None:
        """The label of ``tome_rejected_total``; None for a failure, which is no refusal.

        Failures (status 5xx) appear in ``tome_requests_total`` alone.
        """
        return self.slug if self.status < 500 else None


def _writable(text: str) -> str:
    r"""Return ``text``, which may quote a client, so that it can be written as UTF-8.

    JSON can hold half of a surrogate pair (``"\ud800"``), which UTF-8 cannot.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class BadImage(RequestError):
    """The body is empty, or an image of a supported format that is corrupt or truncated."""

    status = 400
    slug = "bad-image"
    title = "The image cannot be read"


class BadMedia(RequestError):
    """The body is a sound or video of a supported format that is corrupt, truncated or empty."""

    status = 400
    slug = "bad-media"
    title = "The sound or video cannot be read"


class BadRequest(RequestError):
    """The body is not JSON, or violates the protocol, or a tensor does not fit the model."""

    status = 400
    slug = "bad-request"
    title = "The request cannot be understood"


class Malformed(RequestError):
    """The bytes received are not an HTTP/1.1 request."""

    status = 400
    slug = "malformed"
    title = "Not HTTP"


class Unauthorized(RequestError):
    """The request has no API key, or an unknown one."""

    status = 401
    slug = "unauthorized"
    title = "An API key is needed"


class NotFound(RequestError):
    """The path or the model does not exist."""

    status = 404
    slug = "not-found"
    title = "Not found"


class MethodNotAllowed(RequestError):
    """The path does not support this method."""

    status = 405
    slug = "method-not-allowed"
    title = "Method not allowed"


class SlowHeader(RequestError):
    """The header of the request did not arrive before the timeout."""

    status = 408
    slug = "slow-header"
    title = "The header arrived too slowly"


class SlowBody(RequestError):
    """The body of the request did not arrive before the timeout."""

    status = 408
    slug = "slow-body"
    title = "The body arrived too slowly"


class TooLarge(RequestError):
    """The body has too many bytes, an image too many pixels, a sound or video too many seconds."""

    status = 413
    slug = "too-large"
    title = "Too large"


class UnsupportedFormat(RequestError):
    """The body has no supported format, or is of another modality than the model takes."""

    status = 415
    slug = "unsupported-format"
    title = "Not a supported format"


class InvalidParameter(RequestError):
    """A query parameter or a member of a JSON body is unknown, or its value is not allowed."""

    status = 422
    slug = "invalid-parameter"
    title = "Invalid parameter"


class ReloadFailed(RequestError):
    """The catalog cannot be served as it is now; the models of before serve on."""

    status = 422
    slug = "reload-failed"
    title = "The models were not reloaded"


class HeaderTooLarge(RequestError):
    """The request's header has too many bytes (RFC 6585, section 5)."""

    status = 431
    slug = "header-too-large"
    title = "The header is too large"


class InferenceFailed(RequestError):
    """The model failed on this image alone."""

    status = 500
    slug = "inference-failed"
    title = "The model failed on this image"


class Overloaded(RequestError):
    """The server cannot take the request now; ``reason``, a `Refusal`, says why."""

    status = 503
    slug = "overloaded"
    title = "The server cannot take this request now"

    def __init__(self, detail: str, *, reason: Refusal, retry_after: float | None = None) -> None:
        super().__init__(detail, retry_after=retry_after, reason=reason)
        self.reason = reason

    @property
    def refused_for(self) -> str:
        """The `Refusal`."""
        return self.reason


class EngineLost(RequestError):
    """The engine process ended while this request was in flight."""

    status = 503
    slug = "engine-lost"
    title = "The model process was lost"


class DeadlineExceeded(RequestError):
    """The deadline of the request passed before it was answered."""

    status = 504
    slug = "deadline-exceeded"
    title = "The deadline has passed"
