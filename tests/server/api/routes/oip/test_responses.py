from __future__ import annotations

import json
from typing import Any

import numpy as np

from server.api.contract.params import Params
from server.api.contract.schemas import Answer, Prediction, Timing, Tokens
from server.api.routes.oip.requests import InferRequest, RequestedOutput
from server.api.routes.oip.responses import build_infer_response, serialize
from server.api.routes.oip.tensors import split_bytes_elements
from tests.server.api.pipeline.fakes import MODEL
from tome_core.schedule import Schedule


def answer_of(*predictions: tuple[str, float], r: str = "3") -> Answer:
    return Answer(
        model="tiny",
        r=r,
        r_requested="auto",
        merging="paper",
        predictions=[Prediction(label=label, index=0, score=score) for label, score in predictions],
        tokens=Tokens(input=17, output=11),
        timing_ms=Timing(decode=0, queue=0, forward=0),
        batch_size=1,
    )


def request_for(request_id: str | None = None, **outputs: bool) -> InferRequest:
    """A request for ``outputs``, by name, each True for binary data."""
    params = Params(
        model=MODEL,
        choices=(Schedule.constant(3),),
        requested_r="auto",
        top_k=2,
        deadline=None,
    )
    requested_r = tuple(RequestedOutput(name, binary) for name, binary in outputs.items())
    return InferRequest(params, [], request_id, requested_r)


ANSWERS = [
    answer_of(("Kätzchen", 0.75), ("dog", 0.25)),
    answer_of(("dog", 1.0), ("fish", 0.0)),
]


def build(request: InferRequest, answers: list[Answer] = ANSWERS) -> dict[str, Any]:
    """The response, which has no binary data."""
    body, json_bytes = build_infer_response(request, answers)
    assert json_bytes is None
    return json.loads(body)


def test_binary_outputs_follow_the_json_in_their_order():
    body, json_bytes = build_infer_response(request_for(labels=True, scores=True), ANSWERS)
    labels, scores = json.loads(body[:json_bytes])["outputs"]
    assert (labels["shape"], scores["shape"]) == ([2, 2], [2, 2])
    binary_data = memoryview(body)[json_bytes:]
    label_bytes = labels["parameters"]["binary_data_size"]
    elements = split_bytes_elements(binary_data[:label_bytes])
    assert elements == ["Kätzchen".encode(), b"dog", b"dog", b"fish"]
    assert np.frombuffer(binary_data[label_bytes:], "<f4").tolist() == [0.75, 0.25, 1.0, 0.0]
    assert scores["parameters"]["binary_data_size"] == 16


def test_json_outputs_have_their_data_in_row_major_order():
    labels, scores = build(request_for(labels=False, scores=False))["outputs"]
    assert labels == {
        "name": "labels",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["Kätzchen", "dog", "dog", "fish"],
    }
    assert scores["data"] == [0.75, 0.25, 1.0, 0.0]


def test_the_id_is_repeated_if_there_was_one():
    assert build(request_for("mine", scores=False))["id"] == "mine"
    assert "id" not in build(request_for(scores=False))


def test_all_schedules_that_were_used_are_named_once():
    answers = [answer_of(r="3"), answer_of(r="8"), answer_of(r="3")]
    response = build(request_for(scores=False), answers)
    assert response["parameters"] == {"r": "3 8", "r_requested": "auto"}


def test_floats_are_little_endian():
    assert serialize([1.0, -2.5]) == b"\x00\x00\x80\x3f\x00\x00\x20\xc0"
