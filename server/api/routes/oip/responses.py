"""The answer to an inference request: outputs in JSON, and as the binary data that follows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from server.api.contract.schemas import Answer
from server.api.routes.oip.requests import OUTPUTS, InferRequest

VERSION = "1"  # of every model


def write_response(asked: InferRequest, answers: Sequence[Answer]) -> tuple[bytes, int | None]:
    """The body for ``answers``, one an image, and of how many bytes its JSON is where binary data follows."""
    shape = [len(answers), len(answers[0].predictions)]
    outputs: list[dict[str, Any]] = []
    binary = b""
    for output in asked.outputs:
        data = values(output.name, answers)
        tensor = {"name": output.name, "datatype": OUTPUTS[output.name], "shape": shape}
        if output.binary:
            packed = pack(data)
            binary += packed
            outputs.append({**tensor, "parameters": {"binary_data_size": len(packed)}})
        else:
            outputs.append({**tensor, "data": data})
    header = json.dumps(about(asked, answers) | {"outputs": outputs}).encode()
    return header + binary, len(header) if binary else None


def about(asked: InferRequest, answers: Sequence[Answer]) -> dict[str, Any]:
    """Everything but the outputs; ``r`` is the schedule that was used, all of them where images got different ones."""
    used = " ".join(dict.fromkeys(answer.r for answer in answers))
    return {
        "model_name": asked.params.model.name,
        "model_version": VERSION,
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": {"r": used, "r_requested": asked.params.requested},
    }


def values(name: str, answers: Sequence[Answer]) -> list[str] | list[float]:
    """The elements of an output in row-major order, images by classes."""
    predictions = [prediction for answer in answers for prediction in answer.predictions]
    if name == "labels":
        return [prediction.label for prediction in predictions]
    return [prediction.score for prediction in predictions]


def pack(data: Sequence[str] | Sequence[float]) -> bytes:
    """``data`` as a serialised BYTES tensor of UTF-8, or as FP32, little-endian."""
    if data and isinstance(data[0], str):
        encoded = [str(text).encode() for text in data]
        return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    return np.array(data, "<f4").tobytes()
