"""Whether spans are recorded: if OpenTelemetry's SDK is installed and ``OTEL_*`` name an exporter.

The variables are those of OpenTelemetry (opentelemetry.io/docs/languages/sdk-configuration). The
SDK itself reads those of sampler, limits, batches and resource. Its packages are optional, and
not imported where no exporter is configured.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from server.settings import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from server.api.middleware.spans import Tracing

log = logging.getLogger("tome.server")

_EXPORTERS = "opentelemetry_traces_exporter"  # the group of entry points
_OTLP_EXPORTERS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


def create_tracing(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Return the tracing that ``OTEL_*`` configure; None if they name no exporter.

    It is also None, with a warning in the log, if the SDK or the exporter is not installed or
    raises: the server then serves without spans.
    """
    names = exporter_names(environment)
    if not names:
        return None
    try:
        from server.api.middleware.spans import Tracing

        return Tracing(_create_provider(names, environment))
    except ImportError as error:
        log.warning(
            "no spans are recorded: OTEL_* name an exporter, but OpenTelemetry is not complete;"
            " install opentelemetry-sdk and the exporter (%s)",
            error,
        )
    except Exception as error:  # what exporters raise for a wrong variable
        log.warning("no spans are recorded: OpenTelemetry's SDK raised %r", error)
    return None


def exporter_names(environment: Mapping[str, str]) -> list[str]:
    """Return the exporters of spans that ``OTEL_*`` name.

    An endpoint for OTLP names the exporter ``otlp``. ``OTEL_SDK_DISABLED=true`` and the exporter
    ``none`` switch them off.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    has_endpoint = any(environment.get(name) for name in endpoints)
    value = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if has_endpoint else "")
    names = [name.strip() for name in value.split(",")]
    return [name for name in names if name not in ("", "none")]


def _create_provider(names: list[str], environment: Mapping[str, str]) -> TracerProvider:
    """Return a provider that exports to each of ``names``.

    Raises:
        ImportError: the SDK or an exporter is not installed.
        Exception: what the SDK raises for a wrong variable.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from server.api.middleware.spans import SERVICE_NAME

    attributes = {"service.version": VERSION}
    resource_variable = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if "OTEL_SERVICE_NAME" not in environment and "service.name=" not in resource_variable:
        attributes["service.name"] = SERVICE_NAME
    # The lifecycle calls `Tracing.shutdown`, which waits for a bounded time.
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    for name in names:
        exporter: Any = _find_exporter(name, environment).load()
        provider.add_span_processor(BatchSpanProcessor(exporter()))
    return provider


def _find_exporter(name: str, environment: Mapping[str, str]) -> EntryPoint:
    """Return the entry point of an exporter; `otlp` is that of the protocol that is configured."""
    candidates = [name]
    if name == "otlp":
        protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        configured = [environment[key] for key in protocols if environment.get(key)]
        if configured:
            candidates = [_OTLP_EXPORTERS.get(configured[0], configured[0])]
        else:
            candidates = list(_OTLP_EXPORTERS.values())  # the one that is installed
    for candidate in candidates:
        for entry_point in entry_points(group=_EXPORTERS, name=candidate):
            return entry_point
    raise ImportError(f"there is no exporter {' or '.join(candidates)}")
