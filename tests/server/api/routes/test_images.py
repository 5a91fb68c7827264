from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from starlette.datastructures import QueryParams
from starlette.requests import Request

from server.api.contract.params import parse_params
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.inference_request import InferenceRequest
from server.api.pipeline.response_kinds import CLASSES
from server.api.routes.images import (
    MAX_KNOWN,
    MAX_KNOWN_BYTES,
    KnownParams,
    infer,
    openapi_operation,
    timed_response,
)
from server.errors import InvalidParameter
from server.ipc.messages import ModelInfo
from server.media.limits import VideoLimits
from tests.server.api.pipeline.fakes import MODEL


def context_of(**stages: float) -> RequestContext:
    return RequestContext("id", path="/classify", started=1000.0, r="16", stages=stages)


class TestTimedResponse:
    def test_stages_stand_in_server_timing_in_their_order(self):
        response = timed_response("{}", "application/json", context_of(body=1.5, decode=2.0))
        assert response.headers["server-timing"] == "body;dur=1.5, decode;dur=2.0"

    def test_json_has_its_schedule_in_the_body_and_not_in_a_header(self):
        assert "x-tome-r" not in timed_response("{}", "application/json", context_of()).headers

    @pytest.mark.parametrize("media_type", ["image/png", "application/octet-stream"])
    def test_binary_content_has_its_schedule_in_a_header(self, media_type):
        response = timed_response(b"12", media_type, context_of())
        assert response.headers["x-tome-r"] == "16"
        assert response.headers["content-type"] == media_type
        assert response.body == b"12"


class FakeInference:
    """Stands in for `InferencePipeline`, and returns the request that it gets."""

    def models(self) -> dict[str, ModelInfo]:
        return {"tiny": MODEL}

    async def infer(
        self, http_request: Request, request: InferenceRequest[Any]
    ) -> InferenceRequest[Any]:
        return request


class TestQuery:
    def parse(self, query: str) -> RequestContext:
        """The context of a request, once its query is parsed."""
        context = context_of()
        components = SimpleNamespace(inference=FakeInference())
        known_params = KnownParams("1", VideoLimits.max_windows)
        app = SimpleNamespace(
            state=SimpleNamespace(components=components, known_params=known_params)
        )
        scope = {"type": "http", "query_string": query.encode(), "headers": [], "app": app}
        request = Request(scope)
        request.state.context = context
        found: Any = asyncio.run(infer(request, CLASSES))
        assert found.params.model is MODEL
        if found.params.deadline is not None:
            assert found.params.deadline == context.started + 0.5
        return context

    def test_model_and_r_are_noted_for_the_log(self):
        context = self.parse("r=2&deadline_ms=500")
        assert (context.model, context.r) == ("tiny", "2")

    def test_r_has_a_default(self):
        assert self.parse("").r == "1"

    def test_an_unknown_parameter_is_refused(self):
        with pytest.raises(InvalidParameter, match="there is no parameter 'q'"):
            self.parse("q=1")


def test_the_description_of_a_route_says_how_many_files_it_takes():
    operation = openapi_operation("source", "file.")
    assert operation["requestBody"]["description"].endswith("or multipart with one file.")
    assert set(operation["requestBody"]["content"]) == {
        "image/*", "audio/*", "video/*", "multipart/form-data", "application/json",
    }  # fmt: skip
    assert "top_k" not in [parameter["name"] for parameter in operation["parameters"]]


class TestKnownParams:
    MODELS: ClassVar = {"tiny": MODEL}

    def parse(self, known: KnownParams, query: str, arrival: float = 1.0, output="classes"):
        return known.parse(query.encode(), self.MODELS, output, arrival)

    @pytest.mark.parametrize("output", ["classes", "features", "source"])
    @pytest.mark.parametrize("query", ["", "r=2", "r=%32", "r=1&deadline_ms=250.5", "model=tiny"])
    def test_they_are_as_parsed_anew(self, query, output):
        known = KnownParams("1", 8)
        for arrival in (1.0, 2.0, 3.7):
            expected = parse_params(QueryParams(query), self.MODELS, "1", arrival, output, 8)
            assert self.parse(known, query, arrival, output) == expected

    def test_a_known_query_is_not_parsed_again(self):
        known = KnownParams("1", 8)
        assert self.parse(known, "r=2") is self.parse(known, "r=2")

    def test_other_models_make_all_unknown(self):
        known = KnownParams("1", 8)
        self.parse(known, "r=2")
        renamed = replace(MODEL, name="other")
        found = known.parse(b"r=2", {"other": renamed}, "classes", 1.0)
        assert found.model is renamed

    def test_a_wrong_query_is_refused_each_time(self):
        known = KnownParams("1", 8)
        for _ in range(2):
            with pytest.raises(InvalidParameter):
                self.parse(known, "r=999")

    def test_few_are_kept_and_no_long_ones(self):
        known = KnownParams("1", 8)
        for number in range(2 * MAX_KNOWN + 1):
            self.parse(known, f"deadline_ms={number + 1}")
            assert len(known) <= MAX_KNOWN
        before = len(known)
        escaped = "".join(f"%{ord(letter):02x}" for letter in "deadline_ms")
        long = (
            f"{escaped}={'%30' * 10}%31&r=1&model={'%74%69%6e%79'}&top_k=1" + "&" * MAX_KNOWN_BYTES
        )
        assert self.parse(known, long).top_k == 1
        assert len(known) == before
