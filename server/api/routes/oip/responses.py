"""The response to an inference request: its JSON, and the binary data that may follow it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from server.api.contract.schemas import Answer
from server.api.routes.oip.requests import OUTPUT_DATATYPES, InferRequest
from server.api.routes.oip.tensors import LENGTH_BYTES

MODEL_VERSION = "1"  # every model has one version


def build_infer_response(
    request: InferRequest,
    answers: Sequence[Answer],
) -> tuple[bytes, int | None]:
    """Return the body for ``answers``, one per image, and the size of its JSON.

    The size is None if the whole body is JSON.
    """
    shape = [len(answers), len(answers[0].predictions)]
    outputs: list[dict[str, Any]] = []
    binary_data = b""
    for output in request.outputs:
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": OUTPUT_DATATYPES[output.name],
            "shape": shape,
        }
        values = output_values(output.name, answers)
        if output.binary:
            serialized = serialize(values)
            binary_data += serialized
            tensor["parameters"] = {"binary_data_size": len(serialized)}
        else:
            tensor["data"] = values
        outputs.append(tensor)
    message = response_members(request, answers)
    message["outputs"] = outputs
    encoded = json.dumps(message).encode()
    return encoded + binary_data, len(encoded) if binary_data else None


def response_members(request: InferRequest, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the members of the response's JSON, less the outputs.

    The parameter ``r`` is the schedule that was used; if images got different ones, all of them.
    """
    schedules = dict.fromkeys(answer.r for answer in answers)
    members: dict[str, Any] = {
        "model_name": request.params.model.name,
        "model_version": MODEL_VERSION,
    }
    if request.id is not None:
        members["id"] = request.id
    members["parameters"] = {
        "r": " ".join(schedules),
        "r_requested": request.params.requested_r,
    }
    return members


def output_values(name: str, answers: Sequence[Answer]) -> list[str] | list[float]:
    """Return the elements of an output in row-major order, ``(images, classes)``."""
    predictions = [prediction for answer in answers for prediction in answer.predictions]
    if name == "labels":
        return [prediction.label for prediction in predictions]
    return [prediction.score for prediction in predictions]


def serialize(values: Sequence[str] | Sequence[float]) -> bytes:
    """Return strings as a BYTES tensor of UTF-8, or numbers as an FP32 tensor, little-endian."""
    if not values or not isinstance(values[0], str):
        return np.array(values, "<f4").tobytes()
    elements = []
    for text in values:
        encoded = str(text).encode()
        elements.append(len(encoded).to_bytes(LENGTH_BYTES, "little"))
        elements.append(encoded)
    return b"".join(elements)
