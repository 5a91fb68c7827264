"""The application: routes, errors and middleware put together."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from server.api.contract import problem_details
from server.api.middleware.auth import Authentication, Keys
from server.api.middleware.connection_close import ConnectionClose
from server.api.middleware.load_shedding import LoadShedding
from server.api.middleware.proxies import RootPath, cors
from server.api.middleware.request_context import RequestContextMiddleware
from server.api.pipeline.admission import Admission, BodyLimits
from server.api.pipeline.decode_pool import DecodePool
from server.api.pipeline.inference import Inference
from server.api.routes import prometheus
from server.api.routes.images import router as image_routes
from server.api.routes.oip.routes import router as protocol_routes
from server.api.routes.service import NAME, VERSION, Parts, router
from server.engine_client.pool import EnginePool
from server.metrics import Metrics
from server.settings import Settings

_ABOUT = """Vision Transformers accelerated by Token Merging. Every request chooses `r`, the tokens merged away in each
block: large `r` is fast, `r=0` is the exact original model.

    curl --data-binary @image.jpg 'http://HOST:PORT/classify?r=16'

Errors are `application/problem+json` (RFC 9457)."""


def create_app(settings: Settings, keys: Keys, engine: EnginePool, metrics: Metrics) -> FastAPI:
    """The ASGI application in front of ``engine``. Its `Admission` is ``app.state.parts.admission``."""
    app = FastAPI(title=NAME, version=VERSION, description=_ABOUT, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    limits = BodyLimits(settings.max_body_bytes, settings.max_inflight_bytes, settings.body_timeout)
    admission = Admission(engine, limits)
    decoder = DecodePool(settings.decode_threads, settings.max_pixels, settings.max_side)
    inference = Inference(engine, admission, decoder, metrics)
    app.state.parts = Parts(engine, admission, inference, settings.default_r)
    app.state.metrics = metrics
    app.include_router(image_routes)
    app.include_router(router)
    app.include_router(protocol_routes)
    if settings.metrics_port is None:
        app.include_router(prometheus.router)
    problem_details.install(app, metrics)
    # The last one added is the outermost.
    routes = [*image_routes.routes, *protocol_routes.routes]
    posts = [
        route for route in routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())
    ]
    app.add_middleware(LoadShedding, routes=posts, check_room=admission.check_room, metrics=metrics)
    app.add_middleware(Authentication, keys=keys, metrics=metrics)
    if settings.cors_origins:
        # Outside of Access: a preflight has no key, and a page should be able to read that its key
        # was wrong.
        app.add_middleware(CORSMiddleware, **cors(settings.cors_origins))
    app.add_middleware(ConnectionClose, draining=lambda: admission.draining)
    app.add_middleware(RequestContextMiddleware, metrics=metrics)
    if settings.root_path:
        app.add_middleware(RootPath, root=settings.root_path)
    metrics.queue_jobs.set_function(lambda: engine.queued)
    for supervisor in engine.engines:
        metrics.observe_engine(supervisor.name, supervisor.pulse, supervisor.is_ready)
    return app
