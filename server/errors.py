"""Every error of the server, and what each becomes.

ConfigError              start-up fails with this one sentence
EngineStartError         an engine process did not get ready; after some in a row the server ends
DeviceLost               a device fails at everything; its engine process ends
UnsafeAcceleration       a device did not survive an acceleration; its engine process ends, the next does without
RequestError             one request fails, as ``application/problem+json`` (RFC 9457)
├── Malformed            400  not HTTP
├── BadImage             400  empty, corrupt or truncated
├── BadRequest           400  a body that is to hold tensors does not
├── Unauthorized         401  no API key that is known
├── NotFound             404  unknown path or model
├── MethodNotAllowed     405
├── SlowHeader           408  the header did not arrive in time
├── SlowBody             408  the body did not arrive in time
├── TooLarge             413  too many bytes or pixels
├── UnsupportedFormat    415  not one of the image formats that are decoded
├── InvalidParameter     422  a query parameter is out of its range
├── HeaderTooLarge       431
├── InferenceFailed      500  the model failed on this image
├── Overloaded           503  no slot or memory is free, or the server is stopping; with Retry-After
├── EngineLost           503  the engine process died with this request in it; with Retry-After
└── DeadlineExceeded     504  the caller's deadline has passed

Messages are written for the client and never contain text of a library's exception.
"""

from __future__ import annotations

from typing import Any


class ConfigError(Exception):
    """The configuration cannot work: a missing file, a wrong shape, an unknown name. The message says what to do."""


class EngineStartError(Exception):
    """The engine process ended or failed before it was ready. The message says why.

    Attributes:
        explained: the engine itself said why, so that the same start would fail in the same way.
        safer: with what another start may do better, a `server.messages.Accelerations`; None where nothing is known.
    """

    def __init__(self, message: str, *, explained: bool = False, safer: Any = None) -> None:
        super().__init__(message)
        self.explained, self.safer = explained, safer


class DeviceLost(Exception):
    """The device fails at everything until the process that uses it has ended."""


class UnsafeAcceleration(Exception):
    """An acceleration left its device unfit for this process. The message says which, and what happened.

    Attributes:
        safer: the `server.messages.Accelerations` that a new process should start with.
    """

    def __init__(self, message: str, safer: Any) -> None:
        super().__init__(message)
        self.safer = safer


class RequestError(Exception):
    """One request fails with ``status``; ``slug`` is the stable end of the problem's ``type``.

    Args:
        detail: one sentence for the client: what was wrong, and what is allowed.
        retry_after: seconds after which trying again makes sense.
        extensions: further members of the problem (RFC 9457, section 3.2), such as the ``parameter`` that was wrong.
    """

    status = 500
    slug = "internal"
    title = "Internal error"

    def __init__(self, detail: str, *, retry_after: float | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.extensions = extensions


class BadImage(RequestError):
    """The body is empty, or an image of an allowed format that cannot be read to its end."""

    status, slug, title = 400, "bad-image", "The image cannot be read"


class BadRequest(RequestError):
    """The body or a header of it does not follow the protocol, or a tensor is not what the model takes."""

    status, slug, title = 400, "bad-request", "The request cannot be understood"


class Malformed(RequestError):
    """What came is no request of HTTP/1.1."""

    status, slug, title = 400, "malformed", "Not HTTP"


class Unauthorized(RequestError):
    """The request has no API key, or one that is not known."""

    status, slug, title = 401, "unauthorized", "An API key is needed"


class NotFound(RequestError):
    """There is no such path or model."""

    status, slug, title = 404, "not-found", "Not found"


class MethodNotAllowed(RequestError):
    """The path exists, but not for this method."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class SlowHeader(RequestError):
    """The request's header did not arrive within its time."""

    status, slug, title = 408, "slow-header", "The header arrived too slowly"


class SlowBody(RequestError):
    """The request's body did not arrive within its time."""

    status, slug, title = 408, "slow-body", "The body arrived too slowly"


class TooLarge(RequestError):
    """The body has too many bytes, or the image too many pixels."""

    status, slug, title = 413, "too-large", "Too large"


class UnsupportedFormat(RequestError):
    """The body is not an image of an allowed format."""

    status, slug, title = 415, "unsupported-format", "Not a supported image format"


class InvalidParameter(RequestError):
    """A query parameter has a value that is not allowed."""

    status, slug, title = 422, "invalid-parameter", "Invalid parameter"


class InferenceFailed(RequestError):
    """The model failed on this image alone."""

    status, slug, title = 500, "inference-failed", "The model failed on this image"


class HeaderTooLarge(RequestError):
    """The request's header has too many bytes (RFC 6585, section 5)."""

    status, slug, title = 431, "header-too-large", "The header is too large"


class Overloaded(RequestError):
    """The server is full, not ready yet, or stopping."""

    status, slug, title = 503, "overloaded", "The server cannot take this request now"


class EngineLost(RequestError):
    """The process that ran the model ended while it held this request."""

    status, slug, title = 503, "engine-lost", "The model process was lost"


class DeadlineExceeded(RequestError):
    """The request's own deadline has passed before it could be answered."""

    status, slug, title = 504, "deadline-exceeded", "The deadline has passed"
