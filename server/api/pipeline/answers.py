"""What becomes of an image that has run: classes with labels, its features, or a picture of what was merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from server.api.contract.params import Params
from server.api.contract.schemas import Answer, Embedding, Prediction, Timing, Tokens
from server.imaging.visualization import draw, png
from server.ipc.messages import Outcome, OutputKind

T = TypeVar("T")


@dataclass(frozen=True)
class Done:
    """One image that has run: all that its answer is made of.

    Attributes:
        pixels: what the model saw, ``uint8 (C, H, W)``; only where a picture is to be made.
    """

    params: Params
    outcome: Outcome
    timing: Timing
    batch_size: int
    pixels: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One kind of answer: what it needs of the engine, and how it is made of that.

    Attributes:
        picture: it is made of the pixels too, and takes a while; there is one a request.
    """

    want: OutputKind
    make: Callable[[Done], T]
    picture: bool = False


def classification(done: Done) -> Answer:
    """The best classes, named."""
    labels = done.params.model.labels
    outcome = done.outcome
    predictions = [
        Prediction(label=labels[index], index=index, score=score)
        for index, score in zip(outcome.classes, outcome.scores, strict=True)
    ]
    return Answer(predictions=predictions, **about(done))


def embedding(done: Done) -> Embedding:
    """The features, as numbers."""
    return Embedding(embedding=np.frombuffer(done.outcome.features, "<f4").tolist(), **about(done))


def about(done: Done) -> dict[str, Any]:
    """What every answer in JSON says of how it came about."""
    params = done.params
    model = done.params.model
    return {
        "model": model.name,
        "r": str(done.outcome.schedule),
        "r_requested": params.requested,
        "tokens": Tokens(input=model.tokens, output=done.outcome.tokens_out),
        "timing_ms": done.timing,
        "batch_size": done.batch_size,
    }


def picture(done: Done) -> bytes:
    """The merged regions, as a PNG file."""
    assert done.pixels is not None
    model = done.params.model
    return png(
        draw(done.pixels, np.frombuffer(done.outcome.source, "<i4"), model.prefix, model.grid)
    )


CLASSES = Kind("classes", classification)
FEATURES = Kind("features", embedding)
RAW_FEATURES: Kind[bytes] = Kind("features", lambda done: done.outcome.features)
PICTURE = Kind("source", picture, picture=True)
