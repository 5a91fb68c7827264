"""Which windows of a sound a request may name, by endpoint and by model."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from server.api.contract.openapi_parameters import openapi_parameters
from server.api.contract.params import parse_params
from server.api.contract.windows import Windows
from server.errors import InvalidParameter
from server.ipc.messages import OutputKind
from tests.server.api.pipeline.fakes import AUDIO_MODEL, MODEL


def parse(query: str, output: OutputKind = "classes", model: str = "ear") -> Windows:
    models = {"ear": AUDIO_MODEL, "tiny": MODEL}
    return parse_params(QueryParams(f"model={model}&{query}"), models, "0", 0.0, output).windows


@pytest.mark.parametrize(
    ("output", "default"), [("classes", "mean"), ("features", "mean"), ("source", "first")]
)
def test_each_endpoint_has_a_default(output: OutputKind, default: str) -> None:
    assert parse("", output) == default
    assert parse("windows=", output) == default


@pytest.mark.parametrize("value", ["first", "mean", "each"])
def test_a_sound_may_be_answered_in_three_ways(value: str) -> None:
    assert parse(f"windows={value}") is Windows(value)


@pytest.mark.parametrize(
    ("query", "output", "allowed"),
    [
        ("windows=all", "classes", "first, mean, each"),
        ("windows=2", "features", "first, mean, each"),
        ("windows=mean", "source", "first, each"),
    ],
)
def test_other_values_are_refused(query: str, output: OutputKind, allowed: str) -> None:
    with pytest.raises(InvalidParameter, match=f"allowed are {allowed}$") as caught:
        parse(query, output)
    assert caught.value.extensions == {"parameter": "windows"}


def test_an_image_has_no_windows() -> None:
    with pytest.raises(InvalidParameter, match="tiny takes images"):
        parse("windows=mean", model="tiny")


@pytest.mark.parametrize(
    ("output", "values"),
    [("classes", ["first", "mean", "each"]), ("source", ["first", "each"])],
)
def test_the_values_are_documented(output: OutputKind, values: list[str]) -> None:
    (parameter,) = [each for each in openapi_parameters(output) if each["name"] == "windows"]
    assert parameter["schema"]["enum"] == values
