"""Which variables switch spans on, and what happens where OpenTelemetry is not complete."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from server.api.middleware.tracing import create_tracing, exporter_names
from server.settings import VERSION
from tests.server.conftest import ROOT


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "x"}, []),
        ({"OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_TRACES_EXPORTER": ""}, []),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "True"}, []),
    ],
)
def test_an_exporter_or_an_endpoint_switches_spans_on(
    environment: dict[str, str], names: list[str]
) -> None:
    assert exporter_names(environment) == names
    if not names:
        assert create_tracing(environment) is None


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "nowhere"}, "there is no exporter nowhere"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"},
            "there is no exporter carrier-pigeon",
        ),
    ],
)
def test_an_exporter_that_is_not_there_is_a_warning(
    environment: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tome.server"):
        assert create_tracing(environment) is None
    assert "no spans are recorded" in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("variables", "service"),
    [
        ({}, "tome-serve"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,a=b"}, "ours"),
    ],
)
def test_the_service_has_the_name_that_is_configured(
    variables: dict[str, str], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"OTEL_TRACES_EXPORTER": "console", **variables}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracing = create_tracing()
    assert tracing is not None
    assert tracing.resource["service.name"] == service
    assert tracing.resource["service.version"] == VERSION
    tracing.shutdown(timeout=30)


def test_the_sdk_is_imported_only_if_it_is_configured_and_need_not_be_there() -> None:
    code = """import sys
import server.api.app
from server.api.middleware.tracing import create_tracing
create_tracing({})
print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
sys.modules["opentelemetry.sdk"] = None
print(create_tracing({"OTEL_TRACES_EXPORTER": "console"}))"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\nNone\n"
    assert "install opentelemetry-sdk" in result.stderr
