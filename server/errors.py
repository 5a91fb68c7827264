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
        safer: with what another start may do better, a `server.ipc.messages.Accelerations`; None
            where nothing is known.
    """

    def __init__(self, message: str, *, explained: bool = False, safer: Any = None) -> None:
        super().__init__(message)
        self.explained = explained
        self.safer = safer


class DeviceLost(Exception):
    """The device fails at everything until the process that uses it has ended."""


class UnsafeAcceleration(Exception):
    """An acceleration left its device unfit for this process. The message says which, and what happened.

    Attributes:
        safer: the `server.ipc.messages.Accelerations` that a new process should start with.
    """

    def __init__(self, message: str, safer: Any) -> None:
        super().__init__(message)
        self.safer = safer


class RequestError(Exception):
    """One request fails with ``status``; ``slug`` is the stable end of the problem's ``type``.

    Args:
        detail: one sentence for the client: what was wrong, and what is allowed.
        retry_after: seconds after which trying again makes sense.
        extensions: further members of the problem (RFC 9457, section 3.2), such as the
            ``parameter`` that was wrong.
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

    status = 400
    slug = "bad-image"
    title = "The image cannot be read"


class BadRequest(RequestError):
    """The body or a header of it does not follow the protocol, or a tensor is not what the model takes."""

    status = 400
    slug = "bad-request"
    title = "The request cannot be understood"


class Malformed(RequestError):
    """What came is no request of HTTP/1.1."""

    status = 400
    slug = "malformed"
    title = "Not HTTP"


class Unauthorized(RequestError):
    """The request has no API key, or one that is not known."""

    status = 401
    slug = "unauthorized"
    title = "An API key is needed"


class NotFound(RequestError):
    """There is no such path or model."""

    status = 404
    slug = "not-found"
    title = "Not found"


class MethodNotAllowed(RequestError):
    """The path exists, but not for this method."""

    status = 405
    slug = "method-not-allowed"
    title = "Method not allowed"


class SlowHeader(RequestError):
    """The request's header did not arrive within its time."""

    status = 408
    slug = "slow-header"
    title = "The header arrived too slowly"


class SlowBody(RequestError):
    """The request's body did not arrive within its time."""

    status = 408
    slug = "slow-body"
    title = "The body arrived too slowly"


class TooLarge(RequestError):
    """The body has too many bytes, or the image too many pixels."""

    status = 413
    slug = "too-large"
    title = "Too large"


class UnsupportedFormat(RequestError):
    """The body is not an image of an allowed format."""

    status = 415
    slug = "unsupported-format"
    title = "Not a supported image format"


class InvalidParameter(RequestError):
    """A query parameter has a value that is not allowed."""

    status = 422
    slug = "invalid-parameter"
    title = "Invalid parameter"


class InferenceFailed(RequestError):
    """The model failed on this image alone."""

    status = 500
    slug = "inference-failed"
    title = "The model failed on this image"


class HeaderTooLarge(RequestError):
    """The request's header has too many bytes (RFC 6585, section 5)."""

    status = 431
    slug = "header-too-large"
    title = "The header is too large"


class Overloaded(RequestError):
    """The server is full, not ready yet, or stopping."""

    status = 503
    slug = "overloaded"
    title = "The server cannot take this request now"


class EngineLost(RequestError):
    """The process that ran the model ended while it held this request."""

    status = 503
    slug = "engine-lost"
    title = "The model process was lost"


class DeadlineExceeded(RequestError):
    """The request's own deadline has passed before it could be answered."""

    status = 504
    slug = "deadline-exceeded"
    title = "The deadline has passed"
