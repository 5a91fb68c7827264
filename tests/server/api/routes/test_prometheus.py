from fastapi.testclient import TestClient

from server.api.routes.prometheus import create_metrics_app
from server.errors import UnsupportedFormat
from server.metrics.api import Metrics


def test_the_application_of_the_metrics_port_serves_metrics_and_nothing_else():
    metrics = Metrics()
    metrics.observe_error(UnsupportedFormat("not an image"))
    client = TestClient(create_metrics_app(metrics))
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'tome_rejected_total{reason="unsupported-format"} 1.0' in response.text
    for path in ("/", "/docs", "/openapi.json", "/healthz"):
        assert client.get(path).status_code == 404


def test_the_metrics_port_answers_head_as_get():
    client = TestClient(create_metrics_app(Metrics()))
    head = client.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == client.get("/metrics").headers["content-type"]
