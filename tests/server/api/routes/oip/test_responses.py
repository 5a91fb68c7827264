from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from server.api.contract.confidence import Confidence
from server.api.contract.params import Params
from server.api.contract.vectors import VectorForm
from server.api.pipeline.image_responses import FinishedImage, Passes
from server.api.routes.oip.requests import InferRequest, RequestedOutput
from server.api.routes.oip.responses import Row, build_infer_response, response_kind_of, serialize
from server.api.routes.oip.tensors import split_bytes_elements
from server.ipc.messages import Outcome
from tests.server.api.pipeline.fakes import MODEL
from tests.server.api.pipeline.image_pipeline import batch_of
from tome_core.schedule import Schedule


def row_of(*predictions: tuple[str, float], r: str = "3") -> Row:
    return Row(r, [label for label, _ in predictions], [score for _, score in predictions])


def test_a_row_has_the_best_classes_of_an_image():
    outcome = Outcome(1, schedule=Schedule.constant(2), scores=(0.75, 0.25), classes=(2, 0))
    params = request_for().params
    kind = response_kind_of(request_for(labels=False))
    assert kind.output == "classes"
    row = kind.build(FinishedImage(params, Passes((batch_of(outcome),)), timing={}))
    assert row == Row("2", ["fish", "cat"], [0.75, 0.25])


def test_an_embedding_is_computed_where_it_is_requested():
    features = np.array([3.0, -4.0], "<f4").tobytes()
    outcome = Outcome(1, schedule=Schedule.constant(2), features=features)
    request = request_for(embedding=False)
    kind = response_kind_of(request)
    assert kind.output == "features"
    params = replace(request.params, top_k=0)
    row = kind.build(FinishedImage(params, Passes((batch_of(outcome),)), timing={}))
    assert row == Row("2", [], [], embedding=features)
    unit = replace(params, vectors=VectorForm(normalize=True))
    row = kind.build(FinishedImage(unit, Passes((batch_of(outcome),)), timing={}))
    np.testing.assert_allclose(np.frombuffer(row.embedding, "<f4"), [0.6, -0.8], rtol=1e-6)


def test_an_embedding_has_a_shape_of_its_own():
    rows = [row._replace(embedding=np.array([1, 2, 3], "<f4").tobytes()) for row in TWO]
    body, json_bytes = build_infer_response(request_for(embedding=True, scores=False), rows)
    embedding, scores = json.loads(body[:json_bytes])["outputs"]
    assert (embedding["shape"], scores["shape"]) == ([2, 3], [2, 2])
    assert np.frombuffer(body[json_bytes:], "<f4").tolist() == [1, 2, 3] * 2
    (in_json,) = build(request_for(embedding=False), rows)["outputs"]
    assert in_json["data"] == [1, 2, 3] * 2


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


TWO = [
    row_of(("Kätzchen", 0.75), ("dog", 0.25)),
    row_of(("dog", 1.0), ("fish", 0.0)),
]


def build(request: InferRequest, rows: list[Row] = TWO) -> dict[str, Any]:
    """The response, which has no binary data."""
    body, json_bytes = build_infer_response(request, rows)
    assert json_bytes is None
    return json.loads(body)


def test_binary_outputs_follow_the_json_in_their_order():
    body, json_bytes = build_infer_response(request_for(labels=True, scores=True), TWO)
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
    rows = [row_of(r="3"), row_of(r="8"), row_of(r="3")]
    response = build(request_for(scores=False), rows)
    assert response["parameters"] == {"r": "3 8", "r_requested": "auto"}


def test_floats_are_little_endian():
    rows = [Row("3", ["a", "b"], [1.0, -2.5])]
    assert serialize("scores", rows) == b"\x00\x00\x80\x3f\x00\x00\x20\xc0"


def test_second_passes_are_counted_where_they_are_asked_for():
    request = request_for(scores=False)
    assert "second_passes" not in build(request)["parameters"]
    confidence = Confidence({Schedule.constant(3): 0.5}, Schedule.constant(0))
    asking = replace(request, params=replace(request.params, confidence=confidence))
    rows = [
        row_of(("cat", 1.0))._replace(passes=2, confident=True),
        row_of(("cat", 1.0))._replace(confident=True),
        row_of(("cat", 1.0))._replace(confident=False),
    ]
    parameters = build(asking, rows)["parameters"]
    assert (parameters["second_passes"], parameters["uncertain"]) == (1, 1)
