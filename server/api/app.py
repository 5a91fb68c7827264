"""The application: its routes, error handlers and middleware."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute

from server.api.contract import problem_details
from server.api.decoders import Decoders
from server.api.middleware.auth import ApiKeys
from server.api.middleware.requests import Application, RequestMiddleware
from server.api.middleware.tracing import create_tracing
from server.api.pipeline.admission import Admission, BodyLimits
from server.api.pipeline.image import ImagePath
from server.api.pipeline.inference import InferencePipeline
from server.api.pipeline.media import MediaPath
from server.api.pipeline.threads import Threads
from server.api.routes import admin, images, prometheus, service
from server.api.routes.oip import routes as oip
from server.api.routes.openai import routes as openai
from server.api_keys import ServerKeys
from server.decoding.pool import DecodePool
from server.engine_client.engines import Engines
from server.engine_client.reloads import Reloads
from server.engine_client.routing import Router
from server.imaging.decode import decode
from server.media.modality import Modality
from server.metrics.api import Metrics
from server.settings import VERSION, Settings

_DESCRIPTION = """\
Vision Transformers for images, sound and video, accelerated by Token Merging. Every request chooses
`r`, the tokens merged away in each block: large `r` is fast, `r=0` is the exact original model.

    curl --data-binary @image.jpg 'http://HOST:PORT/classify?r=16'

Errors are `application/problem+json` (RFC 9457)."""


def create_app(
    settings: Settings, keys: ServerKeys, engines: Engines, metrics: Metrics, worker: int = 0
) -> Application:
    """Return the ASGI application in front of ``engines``.

    ``app.state.components`` holds what the routes work with, among it the `Admission`;
    ``app.state.decoders`` the processes that decode sounds and videos, which ``engines`` will
    start; ``app.state.reloads`` reloads of the catalog; and ``app.state.tracing`` what records
    spans, if they are configured.

    Args:
        worker: index of the API process.
    """
    app = Application(
        title=service.NAME,
        version=VERSION,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False},  # `RequestMiddleware` makes the spans
    )
    app.router.redirect_slashes = False
    router = Router(engines, settings.target_seconds)
    admission = _create_admission(settings, router)
    threads = Threads(settings.decode_threads)
    decoders = Decoders(partial(_create_pool, settings, metrics, worker))
    decode_image = partial(decode, max_pixels=settings.max_pixels, max_side=settings.max_side)
    inference = InferencePipeline(
        router,
        admission,
        metrics,
        threads,
        image_path=ImagePath(router, metrics, decode_image, threads),
        media_path=MediaPath(router, admission, metrics, decoders, threads),
    )
    app.state.components = service.AppComponents(
        engines, admission, inference, settings.default_r, settings.media_limits
    )
    app.state.known_params = images.KnownParams(
        settings.default_r, settings.media_limits[Modality.VIDEO].max_windows
    )
    app.state.decoders = decoders
    engines.before_jobs = decoders.start_for
    app.state.metrics = metrics
    app.state.tracing = create_tracing()
    app.state.reloads = Reloads()
    _add_routes(app, settings)
    if keys.admin:
        app.include_router(admin.router)
    problem_details.add_exception_handlers(app, metrics)
    app.requests = _create_middleware(app, settings, keys, admission, metrics)
    _observe_engines(engines, metrics)
    return app


def _create_admission(settings: Settings, router: Router) -> Admission:
    limits = {
        Modality.IMAGE: BodyLimits(settings.max_body_bytes, settings.body_timeout),
        Modality.AUDIO: BodyLimits(settings.audio_body_bytes, settings.audio_body_timeout),
        Modality.VIDEO: BodyLimits(settings.video_body_bytes, settings.video_body_timeout),
    }
    return Admission(router, limits, settings.max_inflight_bytes)


def _create_pool(settings: Settings, metrics: Metrics, worker: int) -> DecodePool:
    return DecodePool(
        settings.decode_workers_of(worker),
        settings.media_limits,
        settings.media_decode_timeout,
        on_worker_lost=metrics.observe_lost_worker,
    )


def _add_routes(app: FastAPI, settings: Settings) -> None:
    app.include_router(images.router)
    app.include_router(service.router)
    app.include_router(openai.router)
    app.include_router(oip.router)
    if settings.metrics_port is None:
        app.include_router(prometheus.router)


def _create_middleware(
    app: Application, settings: Settings, keys: ServerKeys, admission: Admission, metrics: Metrics
) -> RequestMiddleware:
    def is_closing() -> bool:
        return admission.closing

    return RequestMiddleware(
        app.answer_by_route,
        metrics,
        ApiKeys(keys.api),
        image_routes=image_routes(),
        endpoints={**images.endpoints(), **openai.endpoints()},
        check_room=admission.check_room,
        is_closing=is_closing,
        tracing=app.state.tracing,
        cors_origins=settings.cors_origins,
        root_path=settings.root_path,
        admin_keys=ApiKeys(keys.admin),
    )


def image_routes() -> list[APIRoute]:
    """Return the routes that take images: the POST routes."""
    routes = [*images.router.routes, *openai.router.routes, *oip.router.routes]
    return [
        route for route in routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())
    ]


def _observe_engines(engines: Engines, metrics: Metrics) -> None:
    def queued_jobs() -> int:
        return engines.queued

    metrics.queue_jobs.set_function(queued_jobs)
    rows = engines.board.engines
    count = len(engines.serving.engines)
    for engine in range(count):
        metrics.observe_engine(str(engine), *rows[engine::count])
