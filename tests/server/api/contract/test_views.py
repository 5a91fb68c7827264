"""Which clips and crops of a video a request may name."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from server.api.contract.openapi_parameters import openapi_parameters
from server.api.contract.params import Params, parse_params
from server.errors import InvalidParameter
from server.media.transforms import VideoTransform
from tests.server.api.pipeline.fakes import AUDIO_MODEL, MODEL, VIDEO_MODEL


def parse(query: str, model: str = "clip", max_views: int = 16) -> Params:
    models = {"clip": VIDEO_MODEL, "ear": AUDIO_MODEL, "tiny": MODEL}
    text = QueryParams(f"model={model}&{query}")
    return parse_params(text, models, "0", 0.0, max_views=max_views)


@pytest.mark.parametrize(
    ("query", "clips", "crops"),
    [
        ("", 2, 1),
        ("clips=&crops=", 2, 1),
        ("clips=16", 16, 1),
        ("crops=3", 2, 3),
        ("clips=5&crops=3", 5, 3),
        ("windows=each&clips=1", 1, 1),
    ],
)
def test_what_is_named_replaces_what_the_model_has(query: str, clips: int, crops: int) -> None:
    transform = parse(query).transform
    assert isinstance(transform, VideoTransform)
    assert (transform.clips, transform.crops) == (clips, crops)
    assert transform.size == VIDEO_MODEL.transform.size


@pytest.mark.parametrize(
    ("query", "parameter", "text"),
    [
        ("clips=0", "clips", "allowed are 1 to 16"),
        ("clips=17", "clips", "allowed are 1 to 16"),
        ("clips=-1", "clips", "allowed are 1 to 16"),
        ("clips=1.0", "clips", "allowed are 1 to 16"),
        ("clips=%C2%B2", "clips", "allowed are 1 to 16"),
        ("clips=1&clips=2", "clips", "given 2 times"),
        ("crops=2", "crops", "allowed are 1 and 3"),
        ("crops=left", "crops", "allowed are 1 and 3"),
        ("clips=6&crops=3", "clips", "make 18 windows; allowed are 16"),
    ],
)
def test_other_values_are_refused(query: str, parameter: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text) as caught:
        parse(query)
    assert caught.value.extensions == {"parameter": parameter}


def test_the_limit_counts_what_the_model_has_by_itself() -> None:
    with pytest.raises(InvalidParameter, match="clips=2 and crops=3 make 6") as caught:
        parse("crops=3", max_views=5)
    assert caught.value.extensions == {"parameter": "crops"}
    with pytest.raises(InvalidParameter, match="clips=2 and crops=1 make 2"):
        parse("", max_views=1)


@pytest.mark.parametrize(("model", "takes"), [("tiny", "images"), ("ear", "sounds")])
@pytest.mark.parametrize("name", ["clips", "crops"])
def test_nothing_but_a_video_has_them(model: str, takes: str, name: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{model} takes {takes}") as caught:
        parse(f"{name}=1", model)
    assert caught.value.extensions == {"parameter": name}
    parse(f"{name}=", model)


def test_the_values_are_documented() -> None:
    schemas = {each["name"]: each["schema"] for each in openapi_parameters("classes")}
    assert (schemas["clips"]["minimum"], schemas["clips"]["maximum"]) == (1, 16)
    assert schemas["crops"]["enum"] == [1, 3]
