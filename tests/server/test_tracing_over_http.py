"""Traces and the log of a start, on a real server that exports its spans to its standard output."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.middleware.test_trace_context import TRACE, VALID
from tests.server.conftest import run_server
from tests.server.wire import SNEAKER

CALLER = {"traceparent": VALID, "tracestate": "foo=1"}


def json_objects(text: str) -> list[dict[str, Any]]:
    """All objects in a text, one after the other."""
    decoder = json.JSONDecoder()
    found = []
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def test_a_request_is_traced_and_the_start_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    log = tmp_path / "stderr"
    with log.open("w") as stderr, run_server(stderr=stderr, log_level="info") as server:
        answer = httpx.post(
            f"{server.url}/classify?r=16", content=SNEAKER, headers=CALLER, timeout=30
        )
        server.process.send_signal(signal.SIGTERM)  # at once: the spans are exported at the end
        output, _ = server.process.communicate(timeout=60)
    assert (answer.status_code, server.process.returncode) == (200, 0)
    version, trace_id, span_id, flags = answer.headers["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert answer.headers["tracestate"] == "foo=1"

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (access,) = [line for line in lines if line["logger"] == "tome.access"]
    assert (access["trace_id"], access["span_id"]) == (TRACE, span_id)

    spans = {span["name"]: span for span in json_objects(output)}
    assert set(spans) == {"POST /classify", "body", "decode", "queue", "forward"}
    request = spans.pop("POST /classify")
    assert request["context"]["span_id"] == f"0x{span_id}"
    assert request["resource"]["attributes"]["service.name"] == "tome-serve"
    assert {span["parent_id"] for span in spans.values()} == {f"0x{span_id}"}
    assert spans["forward"]["attributes"] == {
        "tome.model": "fashion-mnist",
        "tome.r": "16",
        "tome.batch_size": 1,
    }

    begun = [line["message"] for line in lines if "seconds" not in line]
    done = {line["message"].rpartition(": done in ")[0] for line in lines if "seconds" in line}
    steps = [message for message in begun if message in done]
    names = [step.removeprefix("fashion-mnist: ").split()[0] for step in steps]
    # Dtypes are timed where the processor supports several.
    assert [name for name in names if name != "timing"] == [
        "importing",  # the HTTP server
        "importing",  # PyTorch
        "opening",
        "loading",
        "optimising",
        "calibrating",
    ]
