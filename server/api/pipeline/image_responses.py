"""The response for one image: labelled classes, features, or a picture of the merged regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server.api.contract.params import Params
from server.api.contract.schemas import Embedding
from server.engine_client.link import Result
from server.imaging.visualization import draw_regions, encode_png
from server.ipc.messages import Outcome


@dataclass(frozen=True)
class Passes:
    """The passes of one image: one, or two with the parameter ``confidence``.

    Attributes:
        results: of each pass. The last one is the answer.
        confident: whether the answer is certain, or that of a second pass; None if the request does
            not ask for it.
    """

    results: tuple[Result, ...]
    confident: bool | None = None

    @property
    def last(self) -> Result:
        """The result that is the answer."""
        return self.results[-1]

    @property
    def queue_seconds(self) -> float:
        """The time in the queue before all passes."""
        return sum(result.outcome.queue_seconds for result in self.results)

    @property
    def forward_seconds(self) -> float:
        """The time of all passes."""
        return sum(result.batch.forward_seconds for result in self.results)


@dataclass(frozen=True)
class FinishedImage:
    """One image that has run: everything that its response is built from.

    Attributes:
        timing: milliseconds of its stages, as in `Timing`.
        pixels: the decoded image, ``uint8 (C, H, W)``; only where the response is a picture.
    """

    params: Params
    passes: Passes
    timing: Mapping[str, float]
    pixels: npt.NDArray[np.uint8] | None = None

    @property
    def outcome(self) -> Outcome:
        """What the answer says."""
        return self.passes.last.outcome


def class_fields(image: FinishedImage) -> dict[str, Any]:
    """Return the best classes with their labels: the fields of an `Answer`.

    Most requests get these, and to validate them takes longer than to make them.
    """
    outcome = image.outcome
    labels = image.params.labels
    top_k = image.params.top_k
    predictions = predictions_of(labels, outcome.classes[:top_k], outcome.scores[:top_k])
    return image_fields(image, predictions=predictions) | _pass_fields(image.passes)


def _pass_fields(passes: Passes) -> dict[str, Any]:
    """Return the fields of an `Answer` to a request with ``confidence``."""
    if passes.confident is None:
        return {}
    described = [
        {
            "r": str(result.outcome.schedule),
            "forward_ms": round(1000 * result.batch.forward_seconds, 3),
        }
        for result in passes.results
    ]
    return {"passes": described, "confident": passes.confident}


def build_embedding(image: FinishedImage) -> Embedding:
    """Return the pooled features as numbers."""
    return Embedding(**image_fields(image, embedding=vector_of(image).tolist()))


def build_raw_features(image: FinishedImage) -> bytes:
    """Return the pooled features as little-endian float32."""
    return vector_of(image).astype("<f4", copy=False).tobytes()


def vector_of(image: FinishedImage) -> npt.NDArray[np.float32]:
    """Return the pooled features ``(D,)`` in the form that the request names."""
    features = np.frombuffer(image.outcome.features, "<f4")
    return image.params.vectors.apply(features)


def build_picture(image: FinishedImage) -> bytes:
    """Return a picture of the merged regions as a PNG file."""
    assert image.pixels is not None
    model = image.params.model
    source = np.frombuffer(image.outcome.source, "<i4")
    return encode_png(draw_regions(image.pixels, source, model.prefix, model.grid))


def predictions_of(
    labels: Sequence[str], classes: Sequence[int], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the fields of a `Prediction` for each of ``classes``."""
    return [
        {"label": labels[index], "index": index, "score": score}
        for index, score in zip(classes, scores, strict=True)
    ]


def image_fields(image: FinishedImage, **output: Any) -> dict[str, Any]:
    """Return ``output`` with the fields that all JSON responses share, in their order."""
    params = image.params
    model = params.model
    return {
        "model": model.name,
        "r": str(image.outcome.schedule),
        "r_requested": params.requested_r,
        "merging": model.merging,
        **output,
        "tokens": {"input": model.tokens, "output": image.outcome.tokens_out},
        "timing_ms": image.timing,
        "batch_size": image.passes.last.batch.images,
    }
