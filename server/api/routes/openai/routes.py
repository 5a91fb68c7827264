"""The routes below ``/v1``, in the form of OpenAI's API.

Their errors have its form too, by `server.api.contract.problem_details`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
from server.api.contract.params import find_model, openapi_parameters
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.json_images import MAX_IMAGES
from server.api.routes.images import timed_response
from server.api.routes.openai.requests import (
    EmbeddingsRequest,
    check_query,
    parse_embeddings_request,
)
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


def document_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI ``responses`` of a route that can fail with ``statuses``."""
    return {status: {"description": "What was wrong.", "model": OpenAIError} for status in statuses}


def _openapi_embeddings() -> dict[str, Any]:
    """Return the parameters, which may stand in the query or in the body, and the body."""
    parameters = openapi_parameters("features")
    of_embed = {
        parameter["name"]: {**parameter["schema"], "description": parameter["description"]}
        for parameter in parameters
    }
    # A number is as good as its text.
    of_embed["r"] = {"type": ["string", "integer"], "description": of_embed["r"]["description"]}
    of_embed["normalize"] = {
        "type": "boolean",
        "default": True,
        "description": "Whether embeddings are scaled to length 1 (L2); here they are by default.",
    }
    schema = {
        "type": "object",
        "required": ["input"],
        "additionalProperties": False,
        "properties": {
            "input": {
                "anyOf": [
                    _INPUT_SCHEMA,
                    {
                        "type": "array",
                        "items": _INPUT_SCHEMA,
                        "minItems": 1,
                        "maxItems": MAX_IMAGES,
                    },
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
            **of_embed,
        },
    }
    body = {"required": True, "content": {_JSON_TYPE: {"schema": schema}}}
    return {"parameters": parameters, "requestBody": body}


@router.post(
    _EMBEDDINGS,
    response_model=EmbeddingList,
    responses=document_errors(400, 401, 404, 408, 413, 415, 500, 503, 504),
    openapi_extra=_openapi_embeddings(),
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

    def parse(body: bytes) -> EmbeddingsRequest:
        return parse_embeddings_request(
            body,
            query,
            models,
            components.default_r,
            context.started,
            components.media_limits[Modality.VIDEO].max_windows,
        )

    parsed, embedded = await components.inference.infer_parsed(
        request, modality, parse, lambda _: EMBEDDED_INPUTS, context
    )
    content = to_json(embedding_list(parsed, embedded))
    return timed_response(content, _JSON_TYPE, context)


@router.get("/models", responses=document_errors(401, 503))
async def list_models(request: Request) -> OpenAIModelList:
    """The served models; `/models` says more of them."""
    components: AppComponents = request.app.state.components
    return OpenAIModelList(
        object="list", data=[_described(name) for name in components.inference.models()]
    )


@router.get(
    "/models/{name}", responses=document_errors(401, 404, 503), openapi_extra=_OPENAPI_MODEL
)
async def retrieve_model(request: Request) -> OpenAIModel:
    """One served model."""
    components: AppComponents = request.app.state.components
    model = find_model(request.path_params["name"], components.inference.models())
    return _described(model.name)


def _described(name: str) -> OpenAIModel:
    return OpenAIModel(id=name, object="model", created=0, owned_by=NAME)


def endpoints() -> dict[str, Callable[[Request], Awaitable[Response]]]:
    """Return what answers the POST requests of these routes, as that of the routes of images."""
    return {router.prefix + _EMBEDDINGS: embeddings}
