"""The routes below ``/v1``, in the form of OpenAI's API.

Their errors have its form too, by `server.api.contract.problem_details`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.datastructures import QueryParams

from server.api.contract.content_negotiation import check_not_compressed
from server.api.contract.openai_schemas import (
    EmbeddingList,
    OpenAIError,
    OpenAIModel,
    OpenAIModelList,
)
from server.api.contract.openapi_parameters import openapi_parameters
from server.api.contract.params import find_model
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.json_images import MAX_IMAGES
from server.api.routes.images import timed_response
from server.api.routes.openai.requests import check_query, parse_embeddings_request
from server.api.routes.openai.responses import EMBEDDED_INPUTS, embedding_list
from server.api.routes.service import NAME, AppComponents
from server.media.modality import Modality

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_JSON_TYPE = "application/json"
_EMBEDDINGS = "/embeddings"
# FastAPI would document its own error of a parameter that it parses.
_OPENAPI_MODEL: dict[str, Any] = {
    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
}
_INPUT_SCHEMA = {
    "type": "string",
    "description": "An encoded image, sound or video: a data URL, or bare base64.",
    "examples": ["data:image/jpeg;base64,/9j/4AAQSkZJRg..."],
}


_PARAMETERS = openapi_parameters("features")
_MEMBERS: dict[str, dict[str, Any]] = {
    parameter["name"]: {**parameter["schema"], "description": parameter["description"]}
    for parameter in _PARAMETERS
}
_EMBEDDINGS_SCHEMA = {
    "type": "object",
    "required": ["input"],
    "additionalProperties": False,
    "properties": {
        "input": {
            "anyOf": [
                _INPUT_SCHEMA,
                {"type": "array", "items": _INPUT_SCHEMA, "minItems": 1, "maxItems": MAX_IMAGES},
            ]
        },
        "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
        "dimensions": {
            "type": "integer",
            "minimum": 1,
            "description": (
                "How many of the first numbers to return; less than all only of a model that"
                " `/models` lists as `matryoshka`."
            ),
        },
        "user": {"description": "Ignored."},
        **_MEMBERS,
        "r": {**_MEMBERS["r"], "type": ["string", "integer"]},  # a number is as good as its text
        "normalize": {
            "type": "boolean",
            "default": True,
            "description": "Whether embeddings are scaled to length 1 (L2); here by default.",
        },
    },
}
# Parameters may stand in the query or in the body.
_OPENAPI_EMBEDDINGS: dict[str, Any] = {
    "parameters": _PARAMETERS,
    "requestBody": {"required": True, "content": {_JSON_TYPE: {"schema": _EMBEDDINGS_SCHEMA}}},
}


def document_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI ``responses`` of a route that can fail with ``statuses``."""
    return {status: {"description": "What was wrong.", "model": OpenAIError} for status in statuses}


@router.post(
    _EMBEDDINGS,
    response_model=EmbeddingList,
    responses=document_errors(400, 401, 404, 408, 413, 415, 500, 503, 504),
    openapi_extra=_OPENAPI_EMBEDDINGS,
)
async def embeddings(request: Request) -> Any:
    """The embeddings of one image, sound or video, or of several, which share batches.

    They succeed together or not at all. Parameters of `/embed` stand in the body or in the query.
    """
    check_not_compressed(request.headers)
    components: AppComponents = request.app.state.components
    context: RequestContext = request.scope["state"]["context"]
    models = components.inference.models()
    query = QueryParams(request.scope["query_string"])
    model = check_query(query, models)
    if model is None:
        modality = components.inference.widest_modality()
    else:
        context.model = model.name
        modality = model.modality

    parse = partial(
        parse_embeddings_request,
        query=query,
        models=models,
        default_r=components.default_r,
        arrival=context.started,
        max_views=components.media_limits[Modality.VIDEO].max_windows,
    )
    generation = next(iter(models.values())).generation
    parsed, embedded = await components.inference.infer_parsed(
        request, modality, parse, lambda _: EMBEDDED_INPUTS, context, generation
    )
    return timed_response(to_json(embedding_list(parsed, embedded)), _JSON_TYPE, context)


@router.get("/models", responses=document_errors(401, 503))
async def list_models(request: Request) -> OpenAIModelList:
    """The served models, and their aliases; `/models` says more of them."""
    components: AppComponents = request.app.state.components
    served = components.inference.models().values()
    names = [name for model in served for name in (model.name, *model.aliases)]
    return OpenAIModelList(object="list", data=[_described(name) for name in names])


@router.get(
    "/models/{name}", responses=document_errors(401, 404, 503), openapi_extra=_OPENAPI_MODEL
)
async def retrieve_model(request: Request) -> OpenAIModel:
    """One served model."""
    components: AppComponents = request.app.state.components
    name = request.path_params["name"]
    find_model(name, components.inference.models())
    return _described(name)


def _described(name: str) -> OpenAIModel:
    return OpenAIModel(id=name, object="model", created=0, owned_by=NAME)


def endpoints() -> dict[str, Callable[[Request], Awaitable[Response]]]:
    """Return what answers the POST requests of these routes, as that of the routes of images."""
    return {router.prefix + _EMBEDDINGS: embeddings}
