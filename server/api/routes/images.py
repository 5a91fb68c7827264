"""The routes that take images, sounds and videos: parameters, responses, and their OpenAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.datastructures import QueryParams

from server.api.contract.content_negotiation import prefers
from server.api.contract.openapi_parameters import openapi_parameters
from server.api.contract.params import Params, parse_params
from server.api.contract.problem_details import error_responses
from server.api.contract.schemas import (
    Answer,
    Answers,
    CascadeAnswer,
    Embedding,
    Embeddings,
    Problem,
    SoundAnswer,
    SoundAnswerByWindow,
    SoundEmbedding,
    SoundEmbeddingByWindow,
    VideoAnswer,
    VideoAnswerByWindow,
    VideoEmbedding,
    VideoEmbeddingByWindow,
)
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.inference_request import InferenceRequest
from server.api.pipeline.json_images import MAX_IMAGES
from server.api.pipeline.response_kinds import (
    CLASSES,
    FEATURES,
    PICTURE,
    RAW_FEATURES,
    ResponseKind,
)
from server.api.routes.service import AppComponents
from server.ipc.messages import ModelInfo, OutputKind

router = APIRouter()

T = TypeVar("T")

# Queries whose parameters are kept, and the size of one.
MAX_KNOWN = 1024
MAX_KNOWN_BYTES = 256

_JSON_TYPE = "application/json"
_PNG_TYPE = "image/png"
_RAW_TYPE = "application/octet-stream"
_BINARY_SCHEMA = {"type": "string", "format": "binary"}
_BASE64_SCHEMA = {
    "type": "string",
    "description": "An encoded image, sound or video in base64, or a data URL.",
    "examples": ["data:image/png;base64,iVBORw0KGgo..."],
}
_LIST_SCHEMA = {
    "type": "array",
    "items": _BASE64_SCHEMA,
    "minItems": 1,
    "maxItems": MAX_IMAGES,
}
_JSON_SCHEMA = {
    "type": "object",
    "description": (
        "`image`, `audio` or `video`; or `images`, `audios` or `videos`, for a list of results."
    ),
    "properties": {
        "image": _BASE64_SCHEMA,
        "images": _LIST_SCHEMA,
        "audio": _BASE64_SCHEMA,
        "audios": _LIST_SCHEMA,
        "video": _BASE64_SCHEMA,
        "videos": _LIST_SCHEMA,
    },
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}
_BODY_DESCRIPTION = (
    "One encoded image (JPEG, PNG, WebP, GIF, BMP, AVIF), for a model of sound one sound (WAV,"
    " FLAC, OGG with Vorbis or Opus, MP3), for a model of video one video (MP4, MOV, WebM, MKV),"
    " whatever the content type says; or JSON with base64; or multipart with one "
)
_PROBLEMS = error_responses(400, 401, 404, 408, 413, 415, 422, 500, 503, 504)


def openapi_operation(output: OutputKind, multipart_files: str) -> dict[str, Any]:
    """Return the parameters and the body of a route, for ``/openapi.json``.

    Args:
        output: what the route computes.
        multipart_files: how many files a multipart body may have, in words.
    """
    form = {"type": "object", "properties": {"file": {"type": "array", "items": _BINARY_SCHEMA}}}
    body = {
        "required": True,
        "description": _BODY_DESCRIPTION + multipart_files,
        "content": {
            "image/*": {"schema": _BINARY_SCHEMA},
            "audio/*": {"schema": _BINARY_SCHEMA},
            "video/*": {"schema": _BINARY_SCHEMA},
            "multipart/form-data": {"schema": form},
            _JSON_TYPE: {"schema": _JSON_SCHEMA},
        },
    }
    return {"parameters": openapi_parameters(output), "requestBody": body}


def openapi_success(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return the 200 response of a route with binary content, for ``/openapi.json``."""
    return {200: {"content": {media_type: {"schema": _BINARY_SCHEMA}}}}


class KnownParams:
    """The parsed parameters of queries that came before: most clients repeat a few.

    Args:
        default_r, max_views: as those of `server.api.contract.params.parse_params`.
    """

    def __init__(self, default_r: str, max_views: int) -> None:
        self._default_r = default_r
        self._max_views = max_views
        self._models: Mapping[str, ModelInfo] = {}
        self._known: dict[tuple[bytes, OutputKind], Params] = {}

    def __len__(self) -> int:
        return len(self._known)

    def parse(
        self, query: bytes, models: Mapping[str, ModelInfo], output: OutputKind, arrival: float
    ) -> Params:
        """Return the parameters in a query string, as `parse_params` does. Raises what it does."""
        if models is not self._models:
            self._models = models
            self._known.clear()
        params = self._known.get((query, output))
        if params is None:
            # As of a request that arrived at 0: its deadline is how long the others have.
            params = parse_params(
                QueryParams(query), models, self._default_r, 0.0, output, self._max_views
            )
            if len(query) <= MAX_KNOWN_BYTES:
                if len(self._known) == MAX_KNOWN:
                    self._known.clear()  # those that are frequent are back soon
                self._known[query, output] = params
        if params.deadline is None:
            return params
        return replace(params, deadline=arrival + params.deadline)


async def infer(
    request: Request, response_kind: ResponseKind[T], fail_together: bool = False
) -> T | list[T | Problem]:
    """Answer ``request`` as `InferencePipeline.infer` does; note model and ``r`` in its context.

    Raises:
        Overloaded: the models are not loaded.
        InvalidParameter, NotFound: see `server.api.contract.params.parse_params`.
    """
    components: AppComponents = request.app.state.components
    context: RequestContext = request.scope["state"]["context"]
    parameters: KnownParams = request.app.state.known_params
    query = request.scope["query_string"]
    models = components.inference.models()
    params = parameters.parse(query, models, response_kind.output, context.started)
    context.model = params.model.name
    context.r = params.text
    inference_request = InferenceRequest(params, response_kind, context, fail_together)
    return await components.inference.infer(request, inference_request)


def timed_response(content: str | bytes, media_type: str, context: RequestContext) -> Response:
    """Return a response with the ``Server-Timing`` of its stages.

    A response that is not JSON has the schedule that was used in ``X-Tome-R``.
    """
    timings = [f"{stage};dur={milliseconds}" for stage, milliseconds in context.stages.items()]
    headers = {"Server-Timing": ", ".join(timings)}
    if media_type != _JSON_TYPE:
        headers["X-Tome-R"] = context.r
    return Response(content, headers=headers, media_type=media_type)


@router.post(
    "/classify",
    response_model=(
        CascadeAnswer
        | Answer
        | SoundAnswer
        | SoundAnswerByWindow
        | VideoAnswer
        | VideoAnswerByWindow
        | Answers
    ),
    responses=_PROBLEMS,
    openapi_extra=openapi_operation(CLASSES.output, "or more files."),
)
async def classify(request: Request) -> Any:
    """Classify one image, sound or video, or several in multipart or JSON.

    In each block `r` tokens are merged. The scores of a sound or video are means over its windows.
    """
    result = await infer(request, CLASSES)
    body = {"results": result} if isinstance(result, list) else result
    content = to_json(body, inf_nan_mode="null")
    return timed_response(content, _JSON_TYPE, request.scope["state"]["context"])


@router.post(
    "/embed",
    response_model=(
        Embedding
        | SoundEmbedding
        | SoundEmbeddingByWindow
        | VideoEmbedding
        | VideoEmbeddingByWindow
        | Embeddings
    ),
    responses={**_PROBLEMS, **openapi_success(_RAW_TYPE)},
    openapi_extra=openapi_operation(FEATURES.output, "or more files."),
)
async def embed(request: Request) -> Any:
    """Return the pooled features of one image, sound or video, or of several.

    With `Accept: application/octet-stream` the body is little-endian float32 only, one image after
    the other; of a sound or video the mean over its windows, with `windows=each` one row for each.
    It has no room for problems, so the problem of one image, with its `index`, is that of the
    request.
    """
    context: RequestContext = request.scope["state"]["context"]
    if prefers(request.headers.get("accept"), _RAW_TYPE, _JSON_TYPE):
        rows: Any = await infer(request, RAW_FEATURES, fail_together=True)
        content = b"".join(rows) if isinstance(rows, list) else rows
        return timed_response(content, _RAW_TYPE, context)
    result = await infer(request, FEATURES)
    body = Embeddings(results=result) if isinstance(result, list) else result
    return timed_response(body.model_dump_json(), _JSON_TYPE, context)


@router.post(
    "/visualize",
    response_class=Response,
    responses={**_PROBLEMS, **openapi_success(_PNG_TYPE)},
    openapi_extra=openapi_operation(PICTURE.output, "file."),
)
async def visualize(request: Request) -> Response:
    """Draw each region of patches that became one token, in its mean colour and with an outline.

    Of a sound the picture is its spectrogram: low frequencies below, time to the right. Of a video
    it is a contact sheet: one frame for each step of tokens in time, a region in one colour in all.
    """
    picture = await infer(request, PICTURE)
    assert isinstance(picture, bytes)
    return timed_response(picture, _PNG_TYPE, request.scope["state"]["context"])


def endpoints() -> dict[str, Callable[[Request], Awaitable[Response]]]:
    """Return what answers the POST requests of these routes, by their paths.

    `RequestMiddleware` calls them itself. The routes document them, and find them for others.
    """
    return {"/classify": classify, "/embed": embed, "/visualize": visualize}
