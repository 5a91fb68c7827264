"""The routes about the server itself: models, health checks, pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from server.api.contract.problem_details import error_responses, problem_response
from server.api.contract.schemas import (
    Health,
    LabelSetDescription,
    LevelDescription,
    ModelDescription,
    Models,
    SoundModelDescription,
    VideoModelDescription,
)
from server.api.pipeline.admission import Admission
from server.api.pipeline.inference import InferencePipeline
from server.api.routes.pages import STATIC_FOLDER, Page, load_assets
from server.audio.windows import window_seconds
from server.engine_client.engines import Engines
from server.errors import EngineLost, NotFound, Overloaded, Refusal
from server.ipc.messages import ModelInfo
from server.media.limits import AudioLimits, MediaLimits, VideoLimits
from server.media.modality import Modality
from server.media.transforms import AudioTransform, VideoTransform

router = APIRouter()

NAME = "tome-serve"
_DOCS_PAGE = Page("docs.html")
_FRONT_PAGE = Page("page/index.html")
_ASSETS = load_assets(STATIC_FOLDER / "page")


@dataclass(frozen=True)
class AppComponents:
    """What the routes share; ``app.state.components``."""

    engines: Engines
    admission: Admission
    inference: InferencePipeline
    default_r: str
    media_limits: Mapping[Modality, MediaLimits]


@router.get("/models", responses=error_responses(401, 503))
async def models(request: Request) -> Models:
    """All models, with the cost and the accuracy of each configured level of `r`."""
    components: AppComponents = request.app.state.components
    served = components.inference.models()
    return Models(
        models=[model_description(model, components.media_limits) for model in served.values()]
    )


def model_description(model: ModelInfo, limits: Mapping[Modality, MediaLimits]) -> ModelDescription:
    """Return the entry of ``model`` in ``GET /models``."""
    description = _describe(model)
    match model.transform, limits.get(model.modality):
        case AudioTransform() as transform, AudioLimits() as audio:
            return _describe_sound(description, transform, audio)
        case VideoTransform() as transform, VideoLimits() as video:
            return _describe_video(description, transform, video)
    return description


def _describe_sound(
    description: ModelDescription, transform: AudioTransform, limits: AudioLimits
) -> SoundModelDescription:
    seconds = window_seconds(transform.frames)
    return SoundModelDescription(
        **description.model_dump(),
        window_seconds=round(seconds, 2),
        max_seconds=round(min(limits.max_seconds, limits.max_windows * seconds), 2),
        max_channels=limits.max_channels,
        max_windows=limits.max_windows,
    )


def _describe_video(
    description: ModelDescription, transform: VideoTransform, limits: VideoLimits
) -> VideoModelDescription:
    return VideoModelDescription(
        **description.model_dump(),
        frames=transform.frames,
        sampling=transform.sampling,
        stride=transform.stride,
        clips=transform.clips,
        crops=transform.crops,
        max_seconds=limits.max_seconds,
        max_frames=limits.max_frames,
        max_pixels=limits.max_pixels,
        max_windows=limits.max_windows,
    )


def _describe(model: ModelInfo) -> ModelDescription:
    """Return what an entry has for a model of any modality."""
    levels = [
        LevelDescription.model_validate(level, from_attributes=True) for level in model.levels
    ]
    return ModelDescription(
        name=model.name,
        aliases=list(model.aliases),
        architecture=model.architecture,
        modality=model.modality.value,
        input_size=list(model.transform.size),
        classes=len(model.labels),
        tokens=model.tokens,
        blocks=model.depth,
        merging=model.merging,
        activation=model.activation,
        label_sets=[
            LabelSetDescription(name=name, labels=len(labels)) for name, labels in model.label_sets
        ],
        embedding_dim=model.embedding_dim,
        matryoshka=model.matryoshka,
        r_max=model.r_max,
        device=model.device,
        dtype=model.dtype,
        dtype_speedup=model.dtype_speedup,
        acceleration=model.acceleration,
        levels=levels,
    )


@router.get("/healthz", response_model=Health, responses=error_responses(503))
async def healthz(request: Request) -> Any:
    """Liveness: 200 while the process answers; 503 once it has given up all engines and ends."""
    if request.app.state.components.engines.given_up:
        return problem_response(
            EngineLost("the models cannot be loaded any more"), request.state.context.id
        )
    return Health(status="ok")


@router.get("/readyz", response_model=Health, responses=error_responses(503))
async def readyz(request: Request) -> Any:
    """Readiness: 200 while requests are admitted; 503 while no engine is ready, or on shutdown."""
    components: AppComponents = request.app.state.components
    try:
        components.admission.check_open()
        if not components.engines.all_ready:
            raise Overloaded("the models are not loaded", reason=Refusal.NOT_READY, retry_after=1)
    except Overloaded as error:
        # Handled here: this 503 is the answer, and must not count as a refused request.
        return problem_response(error, request.state.context.id)
    return Health(status="ready")


@router.get("/", include_in_schema=False)
async def front_page() -> HTMLResponse:
    """A page to try the server on: an image, a slider for `r`, and the results."""
    return _FRONT_PAGE.response()


@router.get("/static/{name:path}", include_in_schema=False)
async def static_file(request: Request, name: str) -> Response:
    """A file of the front page. Raises `NotFound`."""
    if name not in _ASSETS:
        raise NotFound("there is no such file")
    return _ASSETS[name].response(request.headers.get("if-none-match", ""))


@router.get("/docs", include_in_schema=False)
async def docs_page() -> HTMLResponse:
    """The API documentation, made from ``/openapi.json``, with no file from other servers."""
    return _DOCS_PAGE.response()
