"""Errors as ``application/problem+json`` (RFC 9457), with a stable ``type``, no library texts."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from server import errors
from server.api.contract.openai_errors import (
    is_openai_path,
    openai_error,
    openai_headers,
    openai_status,
)
from server.api.contract.schemas import Problem
from server.errors import InvalidParameter, MethodNotAllowed, NotFound, RequestError
from server.metrics.api import Metrics

MEDIA_TYPE = "application/problem+json"


def problem_of(error: RequestError, request_id: str | None = None) -> Problem:
    """Return ``error`` as the members of a problem."""
    instance = None
    if request_id:
        escaped_id = quote(request_id, safe="")
        instance = f"urn:tome:request:{escaped_id}"
    return Problem(
        type=f"urn:tome:problem:{error.slug}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=instance,
        **error.extensions,
    )


def problem_response(
    error: RequestError,
    request_id: str | None = None,
    headers: dict[str, str] | None = None,
    path: str = "",
) -> Response:
    """Return the response to a request that fails with ``error``.

    Args:
        error: why the request fails.
        request_id: names the request in the problem's ``instance``.
        headers: of the response, besides those of ``error``.
        path: of the request, as the routes know it. Below ``/v1`` the body has OpenAI's form,
            below ``/v2`` that of the Open Inference Protocol.
    """
    headers = {**error.headers, **(headers or {})}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if is_openai_path(path):
        headers |= openai_headers(error)
        return JSONResponse(openai_error(error), openai_status(error), headers)
    if path == "/v2" or path.startswith("/v2/"):
        return JSONResponse(oip_error(error), error.status, headers)
    body = problem_of(error, request_id).model_dump_json(exclude_none=True)
    return Response(body, error.status, headers, MEDIA_TYPE)


def oip_error(error: RequestError) -> dict[str, str]:
    """Return ``error`` as the error object of the Open Inference Protocol."""
    index = error.extensions.get("index")
    if index is None:
        return {"error": error.detail}
    return {"error": f"image {index}: {error.detail}"}


def add_exception_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Make ``app`` answer the errors of its routes and of the framework (404, 405, validation)."""

    async def on_request_error(request: Request, error: RequestError) -> Response:
        metrics.observe_error(error)
        context = request.state.context
        return problem_response(error, context.id, path=context.path)

    async def on_http_exception(request: Request, exception: HTTPException) -> Response:
        return await on_request_error(request, from_http_exception(exception, request))

    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return await on_request_error(
            request, InvalidParameter("a parameter has a value that is not allowed")
        )

    async def on_unexpected_error(request: Request, error: Exception) -> Response:
        raise error  # `RequestMiddleware` logs and answers it

    # FastAPI types every handler as one of `Exception`.
    handlers: dict[type[Exception], Any] = {
        RequestError: on_request_error,
        HTTPException: on_http_exception,
        RequestValidationError: on_validation_error,
        Exception: on_unexpected_error,
    }
    for error_type, handler in handlers.items():
        app.add_exception_handler(error_type, handler)


def from_http_exception(exception: HTTPException, request: Request) -> RequestError:
    """Return the framework's ``exception`` as an error of this server."""
    if exception.status_code == 404:
        return NotFound("there is no such path; /docs lists all paths")
    if exception.status_code == 405:
        return MethodNotAllowed(
            f"{request.method[:20]} is not allowed here; see the Allow header",
            headers=_allow_header(exception),
        )
    return RequestError("the request could not be handled")


def _allow_header(exception: HTTPException) -> dict[str, str]:
    """Return the ``Allow`` header of a 405; the framework's other headers are left out.

    HEAD is allowed where GET is, which the framework does not know.
    """
    allow = Headers(exception.headers or {}).get("allow")
    if allow is None:
        return {}
    return {"Allow": "GET, HEAD" if allow == "GET" else allow}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI ``responses`` of a route that can fail with ``statuses``."""
    titles: dict[int, list[str]] = {}
    for error_type in _request_error_types():
        titles.setdefault(error_type.status, []).append(error_type.title)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": "; ".join(titles[status]),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def _request_error_types() -> list[type[RequestError]]:
    """Return the subclasses of `RequestError`, in the order of their definition."""
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, RequestError) and value is not RequestError
    ]
