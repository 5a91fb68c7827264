"""The paths of the Open Inference Protocol. Errors are ``{"error": "..."}``, by `server.api.contract.problem_details`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from server.api.contract.params import find_model
from server.api.contract.problem_details import respond as respond_problem
from server.api.contract.route_path import route_path
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.answers import CLASSES
from server.api.routes.images import respond
from server.api.routes.oip.requests import HEADER, OUTPUTS, InferRequest, read_request
from server.api.routes.oip.responses import VERSION, write_response
from server.api.routes.service import NAME, FromApp, Parts, parts_of
from server.api.routes.service import VERSION as SERVER_VERSION
from server.errors import EngineLost, NotFound, Overloaded, UnsupportedFormat
from server.ipc.messages import ModelInfo

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

_MODEL = "/models/{name}"
_VERSIONED = f"{_MODEL}/versions/{{version}}"
_BINARY = {"type": "string", "format": "binary"}


def document(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can fail with ``statuses``, for ``/openapi.json``."""
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    content = {"application/json": {"schema": schema}}
    return {status: {"description": "What was wrong.", "content": content} for status in statuses}


_NAMED: dict[str, Any] = {
    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
}
_INFER: dict[str, Any] = {
    **_NAMED,
    "requestBody": {
        "required": True,
        "description": (
            "One input: `image` (BYTES, [n], encoded images; base64 in JSON) or `pixel_values`"
            " (FP32, [n, C, H, W], normalised). Parameters: `r`, `top_k`, `deadline_ms`,"
            " `binary_data_output`."
        ),
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/octet-stream": {"schema": _BINARY},
        },
    },
}


async def named_model(request: Request, parts: Annotated[Parts, Depends(parts_of)]) -> ModelInfo:
    """The model that the path names. Raises `NotFound`, or `Overloaded` until models are loaded."""
    model = find_model(request.path_params["name"], parts.models())
    version = request.path_params.get("version", VERSION)
    if version != VERSION:
        raise NotFound(f"there is no version {version[:40]!r} of {model.name}; there is {VERSION}")
    return model


Named = Annotated[ModelInfo, Depends(named_model)]


@router.get("", responses=document(401))
async def server_metadata() -> dict[str, Any]:
    """What server this is, and which extensions of the protocol it knows."""
    return {"name": NAME, "version": SERVER_VERSION, "extensions": ["binary_tensor_data"]}


@router.get("/health/live", responses=document(503))
async def live(request: Request, parts: FromApp) -> Any:
    """As `/healthz`."""
    if parts.engine.given_up:
        error = EngineLost("the models cannot be loaded any more")
        return respond_problem(error, request.state.record.id, path=route_path(request.scope))
    return {"live": True}


@router.get("/health/ready", responses=document(503))
async def ready(request: Request, parts: FromApp) -> Any:
    """As `/readyz`."""
    return readiness(request, parts, {"ready": True})


@router.get(_MODEL, responses=document(401, 404, 503), openapi_extra=_NAMED)
@router.get(_VERSIONED, include_in_schema=False)
async def model_metadata(model: Named) -> dict[str, Any]:
    """The inputs and outputs of a model. A request has one of the inputs."""
    outputs = OUTPUTS if model.labels else {}
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "pytorch_timm",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixel_values", "datatype": "FP32", "shape": [-1, *model.transform.size]},
        ],
        "outputs": [
            {"name": name, "datatype": kind, "shape": [-1, -1]} for name, kind in outputs.items()
        ],
    }


@router.get(f"{_MODEL}/ready", responses=document(401, 404, 503), openapi_extra=_NAMED)
@router.get(f"{_VERSIONED}/ready", include_in_schema=False)
async def model_ready(request: Request, parts: FromApp, model: Named) -> Any:
    """Whether a model takes work."""
    return readiness(request, parts, {"name": model.name, "ready": True})


@router.post(
    f"{_MODEL}/infer",
    responses=document(400, 401, 404, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra=_INFER,
)
@router.post(f"{_VERSIONED}/infer", include_in_schema=False)
async def infer(request: Request, parts: FromApp, model: Named) -> Response:
    """The best classes of each image: `labels` (BYTES, [n, k]) and `scores` (FP32, [n, k]), best first."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedFormat("bodies may not be compressed; images are already")
    record: RequestContext = request.state.record
    record.model = model.name
    header = request.headers.get(HEADER)

    def read(body: bytes) -> InferRequest:
        return read_request(body, header, model, parts.default_r, record.started)

    asked, answers = await parts.inference.run_asked(request, read, record, CLASSES)
    body, json_size = write_response(asked, answers)
    response = respond(
        body, "application/json" if json_size is None else "application/octet-stream", record
    )
    if json_size is not None:
        response.headers[HEADER] = str(json_size)
    return response


def readiness(request: Request, parts: Parts, answer: dict[str, Any]) -> Response:
    """``answer``, or 503 while no work is taken, which is no refusal that a metric should count."""
    try:
        parts.admission.check_open()
    except Overloaded as error:
        return respond_problem(error, request.state.record.id, path=route_path(request.scope))
    return JSONResponse(answer)
