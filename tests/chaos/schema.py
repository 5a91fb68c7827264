"""schemathesis: requests made from the OpenAPI document, right ones and wrong ones, and what may
come back by it.
"""

from __future__ import annotations

import asyncio

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.chaos.harness import Arena, scrape, settle, total
from tests.chaos.oracle import picture
from tests.chaos.results import Check, Found
from tests.hostile.files import SEEDS

# schemathesis takes every 5xx for a fault; here 503 and 504 say what the request's own deadline
# leads to.
_RIGHT_5XX = (503, 504)
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_BODIES = st.sampled_from([*map(picture, range(3)), *SEEDS]) | st.binary()


async def run(arena: Arena) -> Found:
    """Both kinds of requests for every operation, as many as wanted of each."""
    with arena.server(max_batch=4) as server:
        before = await scrape(server.port)
        # In a thread: it brings its own client, which waits.
        sent, failures = await asyncio.to_thread(explore, f"{server.url}/openapi.json", arena)
        after = await settle(server.port)
    failed = total(after, "tome_requests_total", code="500") - total(
        before, "tome_requests_total", code="500"
    )
    checks = (
        Check("answers outside the OpenAPI document", len(failures), "most", 0),
        Check("status 500", failed, "most", 0),
    )
    for failure in failures:
        arena.folder.joinpath("schema.log").open("a").write(f"{failure}\n\n")
    return Found("schema", "schemathesis over `/openapi.json`", sent, "requests", 0, checks)


def explore(url: str, arena: Arena) -> tuple[int, list[str]]:
    """How many requests were sent, and what was wrong with their answers."""
    for media_type in ("image/*", "audio/*", "video/*", "application/octet-stream"):
        schemathesis.openapi.media_type(media_type, _BODIES)
    schema = schemathesis.openapi.from_url(url)
    sent = 0
    failures = []
    for number, result in enumerate(schema.get_all_operations()):
        assert isinstance(result, Ok), result
        operation = result.ok()
        for mode in schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE:

            @seed(number)
            @settings(
                max_examples=arena.times,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: schemathesis.Case) -> None:
                nonlocal sent
                sent += 1
                if (
                    sent % 2 and case.query
                ):  # a made-up name of a model is a 404, whatever else there is
                    case.query.pop("model", None)
                response = case.call(timeout=30)
                try:
                    case.validate_response(response, checks=CHECKS)
                except FailureGroup as failure:
                    failures.append(
                        f"{case.method} {case.path} {case.query}: {failure!r} {failure.exceptions}"
                    )
                if response.status_code >= 500 and response.status_code not in _RIGHT_5XX:
                    failures.append(
                        f"{case.method} {case.path} {case.query}: {response.status_code}"
                    )

            try:
                send()
            except Exception as error:
                if (
                    type(error).__name__ != "Unsatisfiable"
                ):  # there is no wrong request of a kind without parameters
                    failures.append(f"{operation.label}: {error!r}")
        arena.progress(1)
    return sent, failures
