"""The endpoints that take images: what each takes and gives, for ``/openapi.json`` too; the work is done elsewhere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.contract.content_negotiation import prefers
from server.api.contract.params import Params, documentation, parse_params
from server.api.contract.problem_details import document
from server.api.contract.schemas import Answer, Answers, Embedding, Embeddings
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.answers import CLASSES, FEATURES, PICTURE, RAW_FEATURES
from server.api.routes.service import FromApp, Parts
from server.ipc.messages import OutputKind

router = APIRouter()

RAW = "application/octet-stream"
_JSON = "application/json"
_BINARY = {"type": "string", "format": "binary"}
_ONE = (
    "One encoded image (JPEG, PNG, WebP, GIF, BMP), whatever the content type says; or multipart"
    " with one "
)
_FAILURES = document(400, 401, 404, 408, 413, 415, 422, 500, 503, 504)


def describe(want: OutputKind, files: str) -> dict[str, Any]:
    """Parameters and body of an endpoint that gives ``want``, and takes ``files`` in a multipart body."""
    form = {"type": "object", "properties": {"file": {"type": "array", "items": _BINARY}}}
    content = {"image/*": {"schema": _BINARY}, "multipart/form-data": {"schema": form}}
    body = {"required": True, "description": _ONE + files, "content": content}
    return {"parameters": documentation(want), "requestBody": body}


def read_params(request: Request, parts: Parts, want: OutputKind) -> Params:
    """The parameters of ``request``, noted in its record. Raises as `parse_params`, or `Overloaded`."""
    record: RequestContext = request.state.record
    params = parse_params(
        request.query_params, parts.models(), parts.default_r, record.started, want
    )
    record.model = params.model.name
    record.r = params.text
    return params


def respond(content: str | bytes, media_type: str, record: RequestContext) -> Response:
    """An answer, with what its stages took and, also where it is no JSON, the schedule that was used."""
    timing = ", ".join(
        f"{stage};dur={milliseconds}" for stage, milliseconds in record.stages.items()
    )
    headers = (
        {"Server-Timing": timing}
        if media_type == _JSON
        else {"Server-Timing": timing, "X-Tome-R": record.r}
    )
    return Response(content, headers=headers, media_type=media_type)


@router.post(
    "/classify",
    response_model=Answer | Answers,
    responses=_FAILURES,
    openapi_extra=describe("classes", "or more files."),
)
async def classify(request: Request, parts: FromApp) -> Any:
    """Classify one image, or several in a multipart body, with `r` tokens merged away in every block."""
    params = read_params(request, parts, "classes")
    record = request.state.record
    answer = await parts.inference.run(request, params, record, CLASSES)
    body = Answers(results=answer) if isinstance(answer, list) else answer
    return respond(body.model_dump_json(), _JSON, record)


@router.post(
    "/embed",
    response_model=Embedding | Embeddings,
    responses={**_FAILURES, 200: {"content": {RAW: {"schema": _BINARY}}}},
    openapi_extra=describe("features", "or more files."),
)
async def embed(request: Request, parts: FromApp) -> Any:
    """The pooled features of one image, or of several in a multipart body.

    With `Accept: application/octet-stream` they come as nothing but little-endian float32, one
    image after the other; there is no room for a problem then, so one image that fails is the
    problem of all, with its `index`.
    """
    params = read_params(request, parts, "features")
    record = request.state.record
    raw = prefers(request.headers.get("accept"), RAW, _JSON)
    if raw:
        rows = await parts.inference.run_together(request, params, record, RAW_FEATURES)
        return respond(b"".join(rows), RAW, record)
    answer = await parts.inference.run(request, params, record, FEATURES)
    body = Embeddings(results=answer) if isinstance(answer, list) else answer
    return respond(body.model_dump_json(), _JSON, record)


@router.post(
    "/visualize",
    response_class=Response,
    responses={**_FAILURES, 200: {"content": {"image/png": {"schema": _BINARY}}}},
    openapi_extra=describe("source", "file."),
)
async def visualize(request: Request, parts: FromApp) -> Response:
    """A picture of what was merged: each region of patches that became one token, in its mean colour and outlined."""
    params = read_params(request, parts, "source")
    record = request.state.record
    picture = await parts.inference.run(request, params, record, PICTURE)
    assert isinstance(picture, bytes)
    return respond(picture, "image/png", record)
