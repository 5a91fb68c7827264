"""The metrics for Prometheus: a route of the server, or an application on a port of its own."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.api.middleware.head_requests import HeadRequests
from server.metrics.api import Metrics

router = APIRouter()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """All metrics, in the text format of Prometheus."""
    server_metrics: Metrics = request.app.state.metrics
    text = generate_latest(server_metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def create_metrics_app(metrics: Metrics) -> FastAPI:
    """Return an application whose only route is ``/metrics``."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.metrics = metrics
    app.include_router(router)
    app.add_middleware(HeadRequests)
    return app
