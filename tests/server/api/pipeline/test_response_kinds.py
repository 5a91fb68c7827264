from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic_core import to_json

from server.api.contract.params import Params
from server.api.contract.schemas import Answer, Answers
from server.api.pipeline.image_responses import FinishedImage, Passes
from server.api.pipeline.response_kinds import (
    CLASSES,
    FEATURES,
    PICTURE,
    RAW_FEATURES,
)
from server.ipc.messages import Outcome
from tests.server.api.pipeline.fakes import MODEL
from tests.server.api.pipeline.image_pipeline import batch_of
from tome_core.schedule import Schedule

VALUES = np.array([1.5, -2.0], "<f4")


def finished(pixels: np.ndarray | None = None, **outcome: Any) -> FinishedImage:
    params = Params(
        model=MODEL,
        choices=(Schedule.constant(1),),
        requested_r="auto",
        top_k=2,
        deadline=None,
    )
    result = batch_of(Outcome(1, schedule=Schedule.constant(1), tokens_out=3, **outcome), images=4)
    return FinishedImage(
        params=params,
        passes=Passes((result,)),
        timing={"decode": 1.5, "queue": 2, "forward": 3},
        pixels=pixels,
    )


def answer_of(image: FinishedImage) -> Answer:
    """The validated answer with the best classes."""
    return Answer(**CLASSES.build(image))


@pytest.mark.parametrize("build", [answer_of, FEATURES.build], ids=["classes", "features"])
def test_json_responses_say_what_was_run(build):
    response = build(finished(features=VALUES.tobytes())).model_dump()
    assert response["model"] == "tiny"
    assert (response["r"], response["r_requested"]) == ("1", "auto")
    assert response["tokens"] == {"input": 5, "output": 3}
    assert response["timing_ms"] == {"decode": 1.5, "queue": 2, "forward": 3}
    assert response["batch_size"] == 4


def test_classes_keep_their_order_and_get_their_labels():
    answer = answer_of(finished(classes=(2, 0), scores=(0.75, 0.25)))
    predictions = [(each.label, each.index, each.score) for each in answer.predictions]
    assert predictions == [("fish", 2, 0.75), ("cat", 0, 0.25)]


@given(st.lists(st.floats(width=32), min_size=3, max_size=3), st.floats(0, 1e9))
def test_the_json_of_the_fields_is_that_of_the_validated_answer(
    scores: list[float], queue: float
) -> None:
    image = finished(classes=(2, 0, 1), scores=tuple(scores))
    image = replace(image, timing={"decode": 0.0, "queue": queue, "forward": 1e-3})
    fields = to_json(CLASSES.build(image), inf_nan_mode="null")
    assert fields == answer_of(image).model_dump_json().encode()
    results = to_json({"results": [CLASSES.build(image)]}, inf_nan_mode="null")
    assert results == Answers(results=[answer_of(image)]).model_dump_json().encode()


def test_features_are_numbers_in_json_and_bytes_otherwise():
    image = finished(features=VALUES.tobytes())
    assert FEATURES.build(image).embedding == [1.5, -2.0]
    assert RAW_FEATURES.build(image) == VALUES.tobytes()


def test_a_picture_shows_merged_patches_in_one_colour():
    pixels = np.zeros((3, 8, 8), np.uint8)
    source = np.array([0, 1, 1, 2, 2], "<i4")  # the prefix token; then the two rows of patches
    picture = PICTURE.build(finished(pixels, source=source.tobytes()))
    with Image.open(io.BytesIO(picture)) as image:
        drawn = np.asarray(image)
    half = len(drawn) // 2
    assert len(np.unique(drawn[:half].reshape(-1, 3), axis=0)) == 2  # black, and one outline
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 3
    assert PICTURE.is_picture
