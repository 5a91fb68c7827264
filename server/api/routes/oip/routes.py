"""The routes of the Open Inference Protocol.

Their errors are ``{"error": "..."}``, by `server.api.contract.problem_details`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from server.api.contract.content_negotiation import check_not_compressed
from server.api.contract.parameter_values import QUOTED_CHARACTERS
from server.api.contract.params import find_model
from server.api.contract.problem_details import problem_response
from server.api.middleware.request_context import RequestContext
from server.api.routes.images import timed_response
from server.api.routes.oip.requests import (
    EMBEDDING,
    INPUT_DATATYPES,
    JSON_LENGTH_HEADER,
    InferRequest,
    outputs_of,
    parse_infer_request,
)
from server.api.routes.oip.responses import MODEL_VERSION, build_infer_response, response_kind_of
from server.api.routes.service import NAME, AppComponents
from server.errors import EngineLost, NotFound, Overloaded, RequestError
from server.ipc.messages import ModelInfo
from server.media.modality import Modality
from server.media.transforms import input_shape
from server.settings import VERSION

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

_JSON_TYPE = "application/json"
_BINARY_TYPE = "application/octet-stream"
_MODEL_PATH = "/models/{name}"
_VERSION_PATH = f"{_MODEL_PATH}/versions/{{version}}"
_ANY_SIZE = -1  # in a tensor's shape


def document_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI ``responses`` of a route that can fail with ``statuses``."""
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    content = {_JSON_TYPE: {"schema": schema}}
    return {status: {"description": "What was wrong.", "content": content} for status in statuses}


_OPENAPI_MODEL: dict[str, Any] = {
    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
}
_OPENAPI_INFER: dict[str, Any] = {
    **_OPENAPI_MODEL,
    "requestBody": {
        "required": True,
        "description": (
            "One input: `image` (BYTES, [n], encoded images; base64 in JSON), for a model of sound"
            " `audio`, for one of video `video`; or `pixel_values` ([n, C, H, W], of video"
            " [n, T, C, H, W]): FP32 that is normalised, or, but for sound, UINT8 that is not."
            " Parameters: `r`, `top_k`, `text`, `deadline_ms`, `r_max`, `min_accuracy`,"
            " `min_agreement`, `min_fidelity`, for images"
            " `confidence` and `confidence_r`, for sounds and videos `windows`, for videos `clips`"
            " and `crops`, `binary_data_output`, and Triton's `timeout`. Triton's `priority`,"
            " sequences and classification extension are not supported."
        ),
        "content": {
            _JSON_TYPE: {"schema": {"type": "object"}},
            _BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}},
        },
    },
}


async def get_model(request: Request) -> ModelInfo:
    """Return the model in the path. Raises `NotFound`, or `Overloaded` until models are loaded."""
    models = request.app.state.components.inference.models()
    model = find_model(request.path_params["name"], models)
    version = request.path_params.get("version", MODEL_VERSION)
    if version != MODEL_VERSION:
        quoted = version[:QUOTED_CHARACTERS]
        raise NotFound(f"there is no version {quoted!r} of {model.name}; there is {MODEL_VERSION}")
    return model


ModelDependency = Annotated[ModelInfo, Depends(get_model)]


@router.get("", responses=document_errors(401))
async def server_metadata() -> dict[str, Any]:
    """The name of the server, and the extensions of the protocol that it supports."""
    return {"name": NAME, "version": VERSION, "extensions": ["binary_tensor_data"]}


@router.get("/health/live", responses=document_errors(503))
async def live(request: Request) -> Any:
    """As `/healthz`."""
    if request.app.state.components.engines.given_up:
        return error_response(request, EngineLost("the models cannot be loaded any more"))
    return {"live": True}


@router.get("/health/ready", responses=document_errors(503))
async def ready(request: Request) -> Any:
    """As `/readyz`."""
    return readiness(request, {"ready": True})


@router.get(_MODEL_PATH, responses=document_errors(401, 404, 503), openapi_extra=_OPENAPI_MODEL)
@router.get(_VERSION_PATH, include_in_schema=False)
async def model_metadata(model: ModelDependency) -> dict[str, Any]:
    """The inputs and outputs of a model. A request has one of the inputs, in one of its types."""
    shape = input_shape(model.transform)
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": [_ANY_SIZE] if datatype == "BYTES" else [_ANY_SIZE, *shape],
        }
        for name, datatypes in INPUT_DATATYPES[model.modality].items()
        for datatype in datatypes
    ]
    outputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": [_ANY_SIZE, model.embedding_dim if name == EMBEDDING else _ANY_SIZE],
        }
        for name, datatype in outputs_of(model).items()
    ]
    return {
        "name": model.name,
        "versions": [MODEL_VERSION],
        "platform": "pytorch_timm",
        "inputs": inputs,
        "outputs": outputs,
    }


@router.get(
    f"{_MODEL_PATH}/ready",
    responses=document_errors(401, 404, 503),
    openapi_extra=_OPENAPI_MODEL,
)
@router.get(f"{_VERSION_PATH}/ready", include_in_schema=False)
async def model_ready(request: Request, model: ModelDependency) -> Any:
    """Whether requests for a model are admitted."""
    return readiness(request, {"name": model.name, "ready": True})


@router.post(
    f"{_MODEL_PATH}/infer",
    responses=document_errors(400, 401, 404, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra=_OPENAPI_INFER,
)
@router.post(f"{_VERSION_PATH}/infer", include_in_schema=False)
async def infer(request: Request, model: ModelDependency) -> Response:
    """The outputs of each image that `outputs` names.

    `labels` (BYTES, [n, k]) and `scores` (FP32, [n, k]), the best k classes, which are the default;
    and `embedding` (FP32, [n, D]), the default of a model without classes.
    """
    check_not_compressed(request.headers)
    components: AppComponents = request.app.state.components
    context: RequestContext = request.state.context
    context.model = model.name
    json_length = request.headers.get(JSON_LENGTH_HEADER)

    def parse(body: bytes) -> InferRequest:
        return parse_infer_request(
            body,
            json_length,
            model,
            components.default_r,
            context.started,
            components.media_limits[Modality.VIDEO].max_windows,
        )

    infer_request, rows = await components.inference.infer_parsed(
        request, model.modality, parse, response_kind_of, context, model.generation
    )
    body, json_bytes = build_infer_response(infer_request, rows)
    if json_bytes is None:
        return timed_response(body, _JSON_TYPE, context)
    response = timed_response(body, _BINARY_TYPE, context)
    response.headers[JSON_LENGTH_HEADER] = str(json_bytes)
    return response


def readiness(request: Request, members: dict[str, Any]) -> Response:
    """Return ``members`` as JSON, or 503 while requests are not admitted."""
    try:
        request.app.state.components.admission.check_open()
    except Overloaded as error:
        # Handled here: this 503 is the answer, and must not count as a refused request.
        return error_response(request, error)
    return JSONResponse(members)


def error_response(request: Request, error: RequestError) -> Response:
    """Return ``error`` as the response to ``request``."""
    context: RequestContext = request.state.context
    return problem_response(error, context.id, path=context.path)
