"""The server's responses as dataclasses. Unknown members are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """One class: its label, its index in the model's output, and its score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Tokens:
    """Number of tokens before the first block and after the last one."""

    input: int
    output: int


@dataclass(frozen=True)
class Timing:
    """Duration of each stage in milliseconds; ``forward`` is that of the whole batch."""

    decode: float
    queue: float
    forward: float


@dataclass(frozen=True)
class Classification:
    """The classification of one image.

    Attributes:
        r, r_requested: the schedule that was used, and the requested one.
        predictions: classes in descending order of score.
        batch_size: number of images in the forward pass.
    """

    model: str
    r: str
    r_requested: str
    predictions: tuple[Prediction, ...]
    tokens: Tokens
    timing_ms: Timing
    batch_size: int

    @property
    def label(self) -> str:
        """Label of the class with the highest score."""
        return self.predictions[0].label

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Classification:
        """Parse the server's JSON. Raises `KeyError` or `TypeError` on another format."""
        return cls(
            model=answer["model"],
            r=answer["r"],
            r_requested=answer["r_requested"],
            predictions=tuple(
                Prediction(prediction["label"], prediction["index"], prediction["score"])
                for prediction in answer["predictions"]
            ),
            tokens=Tokens(answer["tokens"]["input"], answer["tokens"]["output"]),
            timing_ms=Timing(
                *(answer["timing_ms"][stage] for stage in ("decode", "queue", "forward"))
            ),
            batch_size=answer["batch_size"],
        )


@dataclass(frozen=True)
class Level:
    """Cost, speed-up and accuracy of one ``r``; None if not measured."""

    r: str
    tokens_out: int
    relative_flops: float
    speedup: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Model:
    """One served model.

    Attributes:
        input_size: channels, height, width.
        classes: number of classes; 0 for a model without a classifier.
        r_max: the largest valid ``r``.
    """

    name: str
    architecture: str
    input_size: tuple[int, int, int]
    classes: int
    tokens: int
    blocks: int
    r_max: int
    device: str
    dtype: str
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Model:
        """Parse the server's JSON. Raises `KeyError` or `TypeError` on another format."""
        names = ("name", "architecture", "classes", "tokens", "blocks", "r_max", "device", "dtype")
        channels, height, width = answer["input_size"]
        level_names = ("r", "tokens_out", "relative_flops", "speedup", "accuracy")
        levels = tuple(
            Level(**{name: level[name] for name in level_names}) for level in answer["levels"]
        )
        return cls(
            input_size=(channels, height, width),
            levels=levels,
            **{name: answer[name] for name in names},
        )
