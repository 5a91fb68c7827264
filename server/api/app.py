"""The application: its routes, error handlers and middleware."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from server.api.contract import problem_details
from server.api.middleware.auth import ApiKeys, Authentication
from server.api.middleware.connection_close import ConnectionClose
from server.api.middleware.head_requests import HeadRequests
from server.api.middleware.load_shedding import LoadShedding
from server.api.middleware.proxies import RootPath, cors_options
from server.api.middleware.request_context import RequestContextMiddleware
from server.api.middleware.tracing import create_tracing
from server.api.pipeline.admission import Admission, BodyLimits
from server.api.pipeline.decode_pool import DecodePool
from server.api.pipeline.inference import InferencePipeline
from server.api.routes import images, prometheus, service
from server.api.routes.oip import routes as oip
from server.engine_client.group import EngineGroup
from server.engine_client.routing import Router
from server.metrics import Metrics
from server.settings import VERSION, Settings

_DESCRIPTION = """\
Vision Transformers accelerated by Token Merging. Every request chooses `r`, the tokens merged away
in each block: large `r` is fast, `r=0` is the exact original model.

    curl --data-binary @image.jpg 'http://HOST:PORT/classify?r=16'

Errors are `application/problem+json` (RFC 9457)."""


def create_app(
    settings: Settings, keys: ApiKeys, engines: EngineGroup, metrics: Metrics
) -> FastAPI:
    """Return the ASGI application in front of ``engines``.

    ``app.state.components`` holds what the routes work with, among it the `Admission`, and
    ``app.state.tracing`` what records spans, if they are configured.
    """
    app = FastAPI(
        title=service.NAME,
        version=VERSION,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False},  # `RequestContextMiddleware` makes the spans
    )
    app.router.redirect_slashes = False
    router = Router(engines, settings.target_ms / 1000)
    admission = _create_admission(settings, router)
    decode_pool = DecodePool(settings.decode_threads, settings.max_pixels, settings.max_side)
    inference = InferencePipeline(router, admission, decode_pool, metrics)
    app.state.components = service.AppComponents(engines, admission, inference, settings.default_r)
    app.state.metrics = metrics
    app.state.tracing = create_tracing()
    _add_routes(app, settings)
    problem_details.add_exception_handlers(app, metrics)
    _add_middleware(app, settings, keys, admission, metrics)
    _observe_engines(engines, metrics)
    return app


def _create_admission(settings: Settings, router: Router) -> Admission:
    limits = BodyLimits(settings.max_body_bytes, settings.max_inflight_bytes, settings.body_timeout)
    return Admission(router, limits)


def _add_routes(app: FastAPI, settings: Settings) -> None:
    app.include_router(images.router)
    app.include_router(service.router)
    app.include_router(oip.router)
    if settings.metrics_port is None:
        app.include_router(prometheus.router)


def _add_middleware(
    app: FastAPI, settings: Settings, keys: ApiKeys, admission: Admission, metrics: Metrics
) -> None:
    """Add the middleware, innermost first: the last one added sees a request first."""
    app.add_middleware(HeadRequests)
    app.add_middleware(
        LoadShedding,
        routes=_image_routes(),
        check_room=admission.check_room,
        metrics=metrics,
    )
    app.add_middleware(Authentication, keys=keys, metrics=metrics)
    if settings.cors_origins:
        # Outside of Authentication: a preflight request has no key, and a page must be able to
        # read that its key is wrong.
        app.add_middleware(CORSMiddleware, **cors_options(settings.cors_origins))

    def is_draining() -> bool:
        return admission.draining

    app.add_middleware(ConnectionClose, is_draining=is_draining)
    app.add_middleware(RequestContextMiddleware, metrics=metrics, tracing=app.state.tracing)
    if settings.root_path:
        app.add_middleware(RootPath, root=settings.root_path)


def _image_routes() -> list[APIRoute]:
    """Return the routes that take images: the POST routes."""
    routes = [*images.router.routes, *oip.router.routes]
    return [
        route for route in routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())
    ]


def _observe_engines(engines: EngineGroup, metrics: Metrics) -> None:
    def queued_jobs() -> int:
        return engines.queued

    metrics.queue_jobs.set_function(queued_jobs)
    for supervisor in engines.supervisors:
        metrics.observe_engine(supervisor.name, supervisor.heartbeat, supervisor.is_ready)
