"""Every error as ``application/problem+json`` (RFC 9457), with a stable ``type`` and no text of any library."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server import errors
from server.api.contract.route_path import route_path
from server.api.contract.schemas import Problem
from server.errors import InvalidParameter, MethodNotAllowed, NotFound, RequestError
from server.metrics import Metrics

MEDIA_TYPE = "application/problem+json"


def describe(error: RequestError, request_id: str | None = None) -> Problem:
    """``error`` as the members of a problem."""
    return Problem(
        type=f"urn:tome:problem:{error.slug}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=f"urn:tome:request:{quote(request_id, safe='')}" if request_id else None,
        **error.extensions,
    )


def respond(
    error: RequestError,
    request_id: str | None = None,
    headers: dict[str, str] | None = None,
    path: str = "",
) -> Response:
    """The answer of a request for ``path``, as routes know it, that fails with ``error``."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if path == "/v2" or path.startswith("/v2/"):
        return JSONResponse(protocol_error(error), error.status, headers)
    body = describe(error, request_id).model_dump_json(exclude_none=True)
    return Response(body, error.status, headers, MEDIA_TYPE)


def protocol_error(error: RequestError) -> dict[str, str]:
    """``error`` as the Open Inference Protocol has it, for all paths of ``/v2``."""
    index = error.extensions.get("index")
    return {"error": error.detail if index is None else f"image {index}: {error.detail}"}


def install(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error that a route raises, and what the framework raises itself: 404, 405 and its validation."""

    async def on_request_error(request: Request, error: RequestError) -> Response:
        metrics.observe_error(error)
        return respond(error, request.state.record.id, path=route_path(request.scope))

    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        known = translate(error, request)
        metrics.observe_error(known)
        allow = {
            name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"
        }
        return respond(known, request.state.record.id, allow, route_path(request.scope))

    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return await on_request_error(
            request, InvalidParameter("a parameter has a value that is not allowed")
        )

    handlers: dict[type[Exception], Any] = {
        RequestError: on_request_error,
        HTTPException: on_http_exception,
        RequestValidationError: on_validation_error,
    }
    for error_type, handler in handlers.items():
        app.add_exception_handler(error_type, handler)


def translate(error: HTTPException, request: Request) -> RequestError:
    """The framework's own exception as one of ours."""
    if error.status_code == 404:
        return NotFound("there is no such path; /docs lists what there is")
    if error.status_code == 405:
        return MethodNotAllowed(f"{request.method[:20]} is not allowed here; see the Allow header")
    return RequestError("the request could not be handled")


def document(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can fail with ``statuses``, for ``/openapi.json``."""
    titles: dict[int, list[str]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, RequestError) and kind is not RequestError:
            titles.setdefault(kind.status, []).append(kind.title)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": "; ".join(titles[status]),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }
