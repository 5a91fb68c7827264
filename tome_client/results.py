"""What the server answers, as plain data. Members that this version does not know are passed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """One class: its label, its number in the model's output, and its score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Tokens:
    """Tokens of an image before the first block and after the last."""

    input: int
    output: int


@dataclass(frozen=True)
class Timing:
    """Milliseconds that the stages of an image took; ``forward`` is that of the batch it was in."""

    decode: float
    queue: float
    forward: float


@dataclass(frozen=True)
class Classification:
    """What a model sees in an image.

    Attributes:
        r, r_requested: the schedule that was used, and what was asked for.
        predictions: best first.
        batch_size: images that shared the forward pass.
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
        """The best class."""
        return self.predictions[0].label

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Classification:
        """From the server's JSON. Raises `KeyError` or `TypeError` if it is something else."""
        return cls(
            model=answer["model"],
            r=answer["r"],
            r_requested=answer["r_requested"],
            predictions=tuple(
                Prediction(one["label"], one["index"], one["score"])
                for one in answer["predictions"]
            ),
            tokens=Tokens(answer["tokens"]["input"], answer["tokens"]["output"]),
            timing_ms=Timing(
                *(answer["timing_ms"][stage] for stage in ("decode", "queue", "forward"))
            ),
            batch_size=answer["batch_size"],
        )


@dataclass(frozen=True)
class Level:
    """What one ``r`` costs and gives; None where it was not measured."""

    r: str
    tokens_out: int
    relative_flops: float
    speedup: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Model:
    """One model that the server has.

    Attributes:
        input_size: channels, height, width.
        classes: 0 for a model that only embeds.
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
        """From the server's JSON. Raises `KeyError` or `TypeError` if it is something else."""
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
