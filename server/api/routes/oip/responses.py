"""The response to an inference request: its JSON, and the binary data that may follow it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from server.api.pipeline import image_responses, media_responses
from server.api.pipeline.image_responses import FinishedImage
from server.api.pipeline.media_responses import FinishedMedia
from server.api.pipeline.response_kinds import ResponseKind
from server.api.routes.oip.requests import EMBEDDING, OUTPUT_DATATYPES, InferRequest
from server.api.routes.oip.tensors import LENGTH_BYTES

MODEL_VERSION = "1"  # every model has one version
_FLOAT_BYTES = 4


class Row(NamedTuple):
    """One input's row of the outputs, best class first, and how it was computed.

    Attributes:
        r: the schedule that was used.
        passes: how many times the input ran.
        confident: see `server.api.pipeline.image_responses.Passes`.
        embedding: little-endian float32; empty where it is not requested.
    """

    r: str
    labels: list[str]
    scores: list[float]
    passes: int = 1
    confident: bool | None = None
    embedding: bytes = b""


def _row_of_image(image: FinishedImage) -> Row:
    outcome = image.outcome
    labels = image.params.labels
    top_k = image.params.top_k
    best = [labels[index] for index in outcome.classes[:top_k]]
    passes = image.passes
    return Row(
        r=str(outcome.schedule),
        labels=best,
        scores=list(outcome.scores[:top_k]),
        passes=len(passes.results),
        confident=passes.confident,
    )


def _row_of_media(media: FinishedMedia) -> Row:
    answer = media_responses.build_classes(media)
    labels = [prediction.label for prediction in answer.predictions]
    scores = [prediction.score for prediction in answer.predictions]
    return Row(answer.r, labels, scores)


def _embedded_row_of_image(image: FinishedImage) -> Row:
    return _row_of_image(image)._replace(embedding=image_responses.build_raw_features(image))


def _embedded_row_of_media(media: FinishedMedia) -> Row:
    embedding = media_responses.build_raw_features(media)
    if media.params.top_k:
        return _row_of_media(media)._replace(embedding=embedding)
    schedule = media_responses.most_merged(media.outcomes).schedule
    return Row(str(schedule), [], [], embedding=embedding)


_CLASSES_ALONE = ResponseKind("classes", _row_of_image, _row_of_media)
# With ``top_k`` the engine returns classes beside the features.
_WITH_EMBEDDING = ResponseKind("features", _embedded_row_of_image, _embedded_row_of_media)


def response_kind_of(request: InferRequest) -> ResponseKind[Row]:
    """Return what a request asks for: the embedding is computed only where it is requested."""
    return _WITH_EMBEDDING if request.wants_embedding else _CLASSES_ALONE


def build_infer_response(
    request: InferRequest,
    rows: Sequence[Row],
) -> tuple[bytes, int | None]:
    """Return the body for ``rows``, one per image, and the size of its JSON.

    The size is None if the whole body is JSON.
    """
    outputs: list[dict[str, Any]] = []
    binary_data = b""
    for output in request.outputs:
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": OUTPUT_DATATYPES[output.name],
            "shape": output_shape(output.name, rows),
        }
        if output.binary:
            serialized = serialize(output.name, rows)
            binary_data += serialized
            tensor["parameters"] = {"binary_data_size": len(serialized)}
        else:
            tensor["data"] = output_values(output.name, rows)
        outputs.append(tensor)
    message = response_members(request, rows)
    message["outputs"] = outputs
    encoded = json.dumps(message).encode()
    return encoded + binary_data, len(encoded) if binary_data else None


def response_members(request: InferRequest, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the members of the response's JSON, less the outputs.

    The parameter ``r`` is the schedule that was used; if images got different ones, all of them.
    With ``confidence``, ``second_passes`` is the number of images that ran again, and ``uncertain``
    that of images that should have and did not.
    """
    schedules = dict.fromkeys(row.r for row in rows)
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
    if request.params.confidence is not None:
        members["parameters"]["second_passes"] = sum(row.passes - 1 for row in rows)
        members["parameters"]["uncertain"] = sum(not row.confident for row in rows)
    return members


def output_shape(name: str, rows: Sequence[Row]) -> list[int]:
    """Return the shape of an output: ``(images, classes)``, or ``(images, D)``."""
    first = rows[0]
    columns = len(first.embedding) // _FLOAT_BYTES if name == EMBEDDING else len(first.labels)
    return [len(rows), columns]


def output_values(name: str, rows: Sequence[Row]) -> list[str] | list[float]:
    """Return the elements of an output in row-major order; see `output_shape`."""
    if name == "labels":
        return [label for row in rows for label in row.labels]
    if name == EMBEDDING:
        return np.frombuffer(b"".join(row.embedding for row in rows), "<f4").tolist()
    return [score for row in rows for score in row.scores]


def serialize(name: str, rows: Sequence[Row]) -> bytes:
    """Return an output as a BYTES tensor of UTF-8, or as an FP32 tensor, little-endian."""
    if name == EMBEDDING:
        return b"".join(row.embedding for row in rows)
    values = output_values(name, rows)
    if name != "labels":
        return np.array(values, "<f4").tobytes()
    elements = []
    for text in values:
        encoded = str(text).encode()
        elements.append(len(encoded).to_bytes(LENGTH_BYTES, "little"))
        elements.append(encoded)
    return b"".join(elements)
