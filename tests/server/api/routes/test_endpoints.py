"""Requests that `RequestMiddleware` answers itself get what the documented routes would answer."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api.contract.problem_details import add_exception_handlers
from server.api.contract.schemas import Answer, Embedding
from server.api.middleware.requests import RequestMiddleware
from server.api.routes import images
from server.engine_client.link import Result
from server.ipc.messages import BatchDone, Failure, Outcome
from server.metrics.api import Metrics
from tests.server.api.pipeline.fakes import MODEL
from tests.server.api.pipeline.image_pipeline import FORM, Pipeline, form
from tests.server.wire import SNEAKER
from tome_core.schedule import Schedule

DURATION = re.compile(r'((?:dur=|"(?:decode|queue|forward)":))[\d.e-]+')
JSON_OF_TWO = json.dumps({"images": ["aGVsbG8=", "aGVsbG8="]}).encode()
RAW = {"accept": "application/octet-stream"}
REQUESTS: list[tuple[str, bytes, dict[str, str]]] = [
    ("/classify", SNEAKER, {}),
    ("/classify?r=2&top_k=1&model=tiny&deadline_ms=60000", SNEAKER, {}),
    ("/classify", b"".join(form(SNEAKER, b"hello")), FORM),
    ("/classify", JSON_OF_TWO, {"content-type": "application/json"}),
    ("/classify", SNEAKER, {"x-request-id": "a/b"}),
    ("/classify", SNEAKER, {"traceparent": f"00-{1:032x}-{1:016x}-00"}),
    ("/classify", SNEAKER, {"connection": "close"}),
    ("/embed", SNEAKER, {}),
    ("/embed?r=0", SNEAKER, RAW),
    ("/visualize", SNEAKER, {}),
    ("/classify", b"", {}),
    ("/classify", b"hello", {}),
    ("/classify?r=999", SNEAKER, {}),
    ("/classify?q=1", SNEAKER, {}),
    ("/classify?r=1&r=2", SNEAKER, {}),
    ("/classify?r=%32", SNEAKER, {}),
    ("/embed?top_k=1", SNEAKER, {}),
    ("/classify?model=other", SNEAKER, {}),
    ("/classify?deadline_ms=0.001", SNEAKER, {}),
    ("/visualize", b"".join(form(SNEAKER, SNEAKER)), FORM),
    ("/classify", bytes(10**6 + 1), {}),
    ("/classify/", SNEAKER, {}),
]


def outcome(failure: Failure | None = None) -> Outcome:
    return Outcome(
        1,
        failure,
        schedule=None if failure else Schedule.constant(1),
        scores=(0.5,),
        classes=(1,),
        features=b"\0\0\0\x3f" * 4,
        source=bytes(4 * 5),
    )


class Served:
    """The routes for images in their middleware, with endpoints or without."""

    def __init__(self, endpoints: bool, failure: Failure | None = None) -> None:
        done = outcome(failure)
        pipeline = Pipeline([Result(done, BatchDone("tiny", (done,), images=1))] * 2)
        pipeline.router.engines.models = {"tiny": MODEL}
        self.metrics = Metrics()
        self.app = FastAPI()
        self.app.router.redirect_slashes = False
        self.app.include_router(images.router)
        self.app.state.components = SimpleNamespace(inference=pipeline.inference)
        self.app.state.known_params = images.KnownParams("1", 8)
        add_exception_handlers(self.app, self.metrics)
        self.app.add_middleware(
            RequestMiddleware,
            metrics=self.metrics,
            endpoints=images.endpoints() if endpoints else {},
        )

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.post(path, content=body, headers=headers)

        return asyncio.run(send())

    def counted(self) -> list[tuple[str, dict[str, str], float]]:
        """The samples of counters, and how many durations were observed."""
        return [
            (sample.name, sample.labels, sample.value)
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name.endswith(("_total", "_count"))
        ]


def comparable(response: httpx.Response) -> Any:
    headers = {name: DURATION.sub(r"\1", value) for name, value in response.headers.items()}
    content = response.content
    if "json" in headers["content-type"]:
        content = DURATION.sub(r"\1", response.text).encode()
        headers.pop("content-length")  # of other durations
    return response.status_code, headers, content


@pytest.mark.parametrize(("path", "body", "headers"), REQUESTS)
def test_an_endpoint_answers_as_its_route(path, body, headers):
    headers = {"x-request-id": "1", **headers}
    by_route, by_endpoint = Served(endpoints=False), Served(endpoints=True)
    expected = by_route.post(path, body, headers)
    found = by_endpoint.post(path, body, headers)
    if "traceparent" in headers:  # its last part is random
        for response in (expected, found):
            assert response.headers.pop("traceparent").startswith(f"00-{1:032x}-")
    assert comparable(found) == comparable(expected)
    assert by_endpoint.counted() == by_route.counted()


@pytest.mark.parametrize("failure", list(Failure))
def test_a_failure_in_the_engine_is_the_same_problem(failure):
    answers = [
        Served(endpoints, failure).post("/classify", SNEAKER, {"x-request-id": "1"})
        for endpoints in (False, True)
    ]
    assert answers[0].status_code >= 500
    assert comparable(answers[0]) == comparable(answers[1])


def test_answers_have_the_documented_form():
    answer = Served(endpoints=True).post("/classify", SNEAKER, {})
    Answer.model_validate_json(answer.content, strict=True)
    embedding = Served(endpoints=True).post("/embed", SNEAKER, {})
    Embedding.model_validate_json(embedding.content, strict=True)


def test_each_route_that_takes_images_has_an_endpoint():
    served = Served(endpoints=True)
    paths = served.app.openapi()["paths"]
    assert set(images.endpoints()) == {path for path in paths if "post" in paths[path]}
