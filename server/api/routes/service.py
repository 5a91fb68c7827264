"""The endpoints about the server itself: models, health, pages. Those of images are in `images`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse

from server.api.contract.problem_details import document, respond
from server.api.contract.schemas import Health, LevelDescription, ModelDescription, Models
from server.api.pipeline.admission import Admission
from server.api.pipeline.inference import Inference
from server.api.routes.pages import FOLDER, Page, load_assets
from server.engine_client.pool import EnginePool
from server.errors import EngineLost, NotFound, Overloaded
from server.ipc.messages import ModelInfo

router = APIRouter()

NAME = "tome-serve"
VERSION = "0.1.0"
_DOCS = Page("docs.html")
_FRONT = Page("page/index.html")
_ASSETS = load_assets(FOLDER / "page")


@dataclass(frozen=True)
class Parts:
    """What the routes work with; ``app.state.parts``."""

    engine: EnginePool
    admission: Admission
    inference: Inference
    default_r: str

    def models(self) -> Mapping[str, ModelInfo]:
        """The models that are served, by name. Raises `Overloaded` until they are loaded."""
        if not self.engine.models:
            self.admission.check_open()
        return self.engine.models


async def parts_of(request: Request) -> Parts:
    """The parts of the application that handles ``request``."""
    # A coroutine, though it waits for nothing: FastAPI would send a function through its thread
    # pool.
    parts: Parts = request.app.state.parts
    return parts


FromApp = Annotated[Parts, Depends(parts_of)]


@router.get("/models", responses=document(401, 503))
async def models(parts: FromApp) -> Models:
    """All models, with what each configured level of `r` leaves, costs and gives."""
    return Models(models=[describe(model) for model in parts.models().values()])


def describe(model: ModelInfo) -> ModelDescription:
    """``model`` for ``GET /models``."""
    return ModelDescription(
        name=model.name,
        architecture=model.architecture,
        input_size=list(model.transform.size),
        classes=len(model.labels),
        tokens=model.tokens,
        blocks=model.depth,
        r_max=model.r_max,
        device=model.device,
        dtype=model.dtype,
        acceleration=model.acceleration,
        levels=[
            LevelDescription.model_validate(level, from_attributes=True) for level in model.levels
        ],
    )


@router.get("/healthz", response_model=Health, responses=document(503))
@router.head("/healthz", include_in_schema=False)
async def healthz(request: Request, parts: FromApp) -> Any:
    """200 as long as the process lives and answers; 503 once all its engines are given up, with which it ends."""
    if parts.engine.given_up:
        return respond(EngineLost("the models cannot be loaded any more"), request.state.record.id)
    return Health(status="ok")


@router.get("/readyz", response_model=Health, responses=document(503))
@router.head("/readyz", include_in_schema=False)
async def readyz(request: Request, parts: FromApp) -> Any:
    """200 when work is taken; 503 while no engine is ready, and while the server stops."""
    try:
        parts.admission.check_open()
    except Overloaded as error:  # here it is the answer, no refusal that a metric should count
        return respond(error, request.state.record.id)
    return Health(status="ready")


@router.get("/", include_in_schema=False)
async def front() -> HTMLResponse:
    """A page to try the server on: a picture, a slider for `r`, and what comes of them."""
    return _FRONT.response()


@router.get("/static/{name:path}", include_in_schema=False)
async def static(request: Request, name: str) -> Response:
    """A file of that page. Raises `NotFound`."""
    if name not in _ASSETS:
        raise NotFound("there is no such file")
    return _ASSETS[name].response(request.headers.get("if-none-match", ""))


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """The API in words, of ``/openapi.json``, with nothing loaded from elsewhere."""
    return _DOCS.response()
