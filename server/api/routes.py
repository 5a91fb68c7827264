"""The endpoints: what each takes and gives, for ``/openapi.json`` too; the work is done elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.api.admission import Admission
from server.api.classify import Classifier
from server.api.params import DOCUMENTATION, parse_params
from server.api.problems import document, respond
from server.api.schemas import Answer, Answers, Health, LevelDescription, ModelDescription, Models
from server.engine.client import EngineClient
from server.errors import Overloaded
from server.messages import ModelInfo
from server.metrics import Metrics

router = APIRouter()

_DOCS = (Path(__file__).parent / "static" / "docs.html").read_text("utf-8")
_BINARY = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "description": "One encoded image (JPEG, PNG, WebP, GIF, BMP), whatever the content type says; or multipart with "
    "one or more files.",
    "content": {
        "image/*": {"schema": _BINARY},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "array", "items": _BINARY}}}
        },
    },
}


@dataclass(frozen=True)
class Parts:
    """What the routes work with; ``app.state.parts``."""

    engine: EngineClient
    admission: Admission
    classifier: Classifier
    metrics: Metrics
    default_r: str


def parts_of(request: Request) -> Parts:
    """The parts of the application that handles ``request``."""
    parts: Parts = request.app.state.parts
    return parts


FromApp = Annotated[Parts, Depends(parts_of)]


@router.post(
    "/classify",
    response_model=Answer | Answers,
    responses=document(400, 404, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra={"parameters": DOCUMENTATION, "requestBody": _BODY},
)
async def classify(request: Request, parts: FromApp) -> Any:
    """Classify one image, or several in a multipart body, with `r` tokens merged away in every block."""
    record = request.state.record
    if not parts.engine.models:
        parts.admission.check_open()
    params = parse_params(request.query_params, parts.engine.models, parts.default_r, record.started)
    record.model, record.r = params.model.name, str(params.schedule)
    answer = await parts.classifier.classify(request, params, record)
    timing = ", ".join(f"{stage};dur={milliseconds}" for stage, milliseconds in record.stages.items())
    return Response(answer.model_dump_json(), headers={"Server-Timing": timing}, media_type="application/json")


@router.get("/models", responses=document(503))
async def models(parts: FromApp) -> Models:
    """All models, with what each configured level of `r` leaves, costs and gives."""
    if not parts.engine.models:
        parts.admission.check_open()
    return Models(models=[describe(model) for model in parts.engine.models.values()])


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
        levels=[LevelDescription.model_validate(level, from_attributes=True) for level in model.levels],
    )


@router.get("/healthz")
@router.head("/healthz", include_in_schema=False)
async def healthz() -> Health:
    """200 as long as the process lives and answers."""
    return Health(status="ok")


@router.get("/readyz", response_model=Health, responses=document(503))
@router.head("/readyz", include_in_schema=False)
async def readyz(request: Request, parts: FromApp) -> Any:
    """200 when work is taken; 503 while the models load, after the engine was lost, and while the server stops."""
    try:
        parts.admission.check_open()
    except Overloaded as error:  # here it is the answer, no refusal that a metric should count
        return respond(error, request.state.record.id)
    return Health(status="ready")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(parts: FromApp) -> Response:
    """What Prometheus scrapes."""
    return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """The API in words, of ``/openapi.json``, with nothing loaded from elsewhere."""
    return HTMLResponse(_DOCS)
