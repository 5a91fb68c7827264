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
class Media:
    """A sound: its duration, and the sample rate (Hz) and channels of its file."""

    seconds: float
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class Window:
    """The classification of one window of a sound, from ``start`` to ``end`` in seconds."""

    start: float
    end: float
    r: str
    predictions: tuple[Prediction, ...]
    tokens: Tokens

    @property
    def label(self) -> str:
        """Label of the class with the highest score."""
        return self.predictions[0].label


@dataclass(frozen=True)
class Classification:
    """The classification of one image or sound.

    Attributes:
        r, r_requested: the schedule that was used, and the requested one.
        predictions: classes in descending order of score; of a sound, the average of its windows.
        batch_size: number of images or windows in the forward pass.
        modality: ``image`` or ``audio``: what the model takes.
        media: the sound; None for an image.
        windows: in order of time; empty unless each was requested.
    """

    model: str
    r: str
    r_requested: str
    predictions: tuple[Prediction, ...]
    tokens: Tokens
    timing_ms: Timing
    batch_size: int
    modality: str = "image"
    media: Media | None = None
    windows: tuple[Window, ...] = ()

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
            predictions=parse_predictions(answer),
            tokens=parse_tokens(answer),
            timing_ms=Timing(
                *(answer["timing_ms"][stage] for stage in ("decode", "queue", "forward"))
            ),
            batch_size=answer["batch_size"],
            modality=answer.get("modality", "image"),
            media=parse_media(answer),
            windows=tuple(map(parse_window, answer.get("windows", ()))),
        )


def parse_predictions(answer: Mapping[str, Any]) -> tuple[Prediction, ...]:
    """Parse the predictions of an answer or of a window."""
    return tuple(
        Prediction(prediction["label"], prediction["index"], prediction["score"])
        for prediction in answer["predictions"]
    )


def parse_tokens(answer: Mapping[str, Any]) -> Tokens:
    """Parse the tokens of an answer or of a window."""
    return Tokens(answer["tokens"]["input"], answer["tokens"]["output"])


def parse_media(answer: Mapping[str, Any]) -> Media | None:
    """Parse what an answer says of its sound; None if it is the answer to an image."""
    media = answer.get("media")
    if media is None:
        return None
    return Media(media["seconds"], media["sample_rate"], media["channels"])


def parse_window(window: Mapping[str, Any]) -> Window:
    """Parse one window of an answer."""
    return Window(
        start=window["start"],
        end=window["end"],
        r=window["r"],
        predictions=parse_predictions(window),
        tokens=parse_tokens(window),
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
        modality: ``image`` or ``audio``: what the model takes.
        window_seconds: duration of one window of a sound; None for a model of images.
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
    modality: str = "image"
    window_seconds: float | None = None

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
            modality=answer.get("modality", "image"),
            window_seconds=answer.get("window_seconds"),
            **{name: answer[name] for name in names},
        )
