"""The server's responses as dataclasses. Unknown members are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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
class Pass:
    """One forward pass of an image: its schedule, and the milliseconds of its batch."""

    r: str
    forward_ms: float


@dataclass(frozen=True)
class Media:
    """A sound: its duration, and the sample rate (Hz) and channels of its file."""

    seconds: float
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class Video:
    """A video.

    Attributes:
        seconds: its duration.
        frames: of the whole file.
        frame_rate: mean frames a second.
        width, height: of the picture as it is shown, in pixels.
        codec: such as ``h264``.
    """

    seconds: float
    frames: int
    frame_rate: float
    width: int
    height: int
    codec: str


@dataclass(frozen=True)
class Window:
    """The classification of one window of a sound or a video.

    Attributes:
        start, end: in seconds.
        crop: of a video, which part of its frames: of three, 0 is the left or the upper one; a
            single one, from the middle, is 0.
    """

    start: float
    end: float
    r: str
    predictions: tuple[Prediction, ...]
    tokens: Tokens
    crop: int = 0

    @property
    def label(self) -> str:
        """Label of the class with the highest score."""
        return self.predictions[0].label


@dataclass(frozen=True)
class Classification:
    """The classification of one image, sound or video.

    Attributes:
        r, r_requested: the schedule that was used, and the requested one.
        merging: the rule by which tokens merge, ``paper`` or ``pairs``.
        predictions: classes in descending order of score; of several windows, by their average.
        batch_size: number of images or windows in the forward pass.
        modality: ``image``, ``audio`` or ``video``: what the model takes.
        media: the sound or the video; None for an image.
        windows: in order of time, then of crops; empty unless each was requested.
        passes: of an image, with ``confidence``; else empty.
        confident: with ``confidence``, whether the classes are certain, or those of a second pass;
            else None.
    """

    model: str
    r: str
    r_requested: str
    predictions: tuple[Prediction, ...]
    tokens: Tokens
    timing_ms: Timing
    batch_size: int
    modality: str = "image"
    media: Media | Video | None = None
    windows: tuple[Window, ...] = ()
    merging: str = "paper"
    passes: tuple[Pass, ...] = ()
    confident: bool | None = None

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
            merging=answer.get("merging", "paper"),
            passes=tuple(Pass(each["r"], each["forward_ms"]) for each in answer.get("passes", ())),
            confident=answer.get("confident"),
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


def parse_media(answer: Mapping[str, Any]) -> Media | Video | None:
    """Parse what an answer says of its sound or video; None if it is the answer to an image."""
    media = answer.get("media")
    if media is None:
        return None
    kind = Video if answer.get("modality") == "video" else Media
    return kind(**{field.name: media[field.name] for field in fields(kind)})


def parse_window(window: Mapping[str, Any]) -> Window:
    """Parse one window of an answer."""
    return Window(
        start=window["start"],
        end=window["end"],
        r=window["r"],
        predictions=parse_predictions(window),
        tokens=parse_tokens(window),
        crop=window.get("crop", 0),
    )


@dataclass(frozen=True)
class Level:
    """Cost, speed-up and quality of one ``r``; None if not measured.

    Attributes:
        accuracy: percent of images whose class is the right one.
        agreement: percent of images whose class is that of r=0.
        agreement_low: what the agreement is at least, by its 95 % confidence interval.
        margin: what ``confidence="auto"`` means at this ``r``.
        margin_agreement, cascade_accuracy: agreement, at least, and accuracy with that.
        cosine: the mean of embeddings with those of r=0.
        cosine_low: what it is at least, by its 95 % confidence interval.
        cosine_p1, cosine_p5: below these are 1 % and 5 % of the images.
        recall_1, recall_10: percent of the 1 and 10 nearest neighbours of r=0 that stay so.
        mixed_recall_1, mixed_recall_10: the same where half of the embeddings are of r=0.
    """

    r: str
    tokens_out: int
    relative_flops: float
    speedup: float | None
    accuracy: float | None
    margin: float | None = None
    agreement: float | None = None
    agreement_low: float | None = None
    margin_agreement: float | None = None
    cascade_accuracy: float | None = None
    cosine: float | None = None
    cosine_low: float | None = None
    cosine_p1: float | None = None
    cosine_p5: float | None = None
    recall_1: float | None = None
    recall_10: float | None = None
    mixed_recall_1: float | None = None
    mixed_recall_10: float | None = None


@dataclass(frozen=True)
class Model:
    """One served model.

    Attributes:
        input_size: channels, height, width; of a video, the frames lie below each other.
        classes: number of classes; 0 for a model without a classifier.
        r_max: the largest valid ``r``.
        merging: the rule by which tokens merge, ``paper`` or ``pairs``.
        activation: computes the scores: ``softmax``, which ``confidence`` needs, or another.
        embedding_dim: numbers of an embedding; None where the server does not say.
        matryoshka: whether the first numbers of an embedding are one too.
        label_sets: numbers of labels by the names of the sets that images can be compared with, the
            default first; empty for models without zero-shot classification.
        modality: ``image``, ``audio`` or ``video``: what the model takes.
        window_seconds: duration of one window of a sound; None for other models.
        frames: of a clip of video, as the following; None for other models.
        sampling: ``stride`` or ``uniform``: where the frames of a clip lie in the video.
        stride: frames of the video from one of a clip to the next, where sampling is ``stride``.
        clips, crops: of each video, where a request does not say otherwise.
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
    frames: int | None = None
    sampling: str | None = None
    stride: int | None = None
    clips: int | None = None
    crops: int | None = None
    merging: str = "paper"
    activation: str = "softmax"
    embedding_dim: int | None = None
    matryoshka: bool = False
    label_sets: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Model:
        """Parse the server's JSON. Raises `KeyError` or `TypeError` on another format."""
        names = ("name", "architecture", "classes", "tokens", "blocks", "r_max", "device", "dtype")
        channels, height, width = answer["input_size"]
        level_names = ("r", "tokens_out", "relative_flops", "speedup", "accuracy")
        media_names = ("window_seconds", "frames", "sampling", "stride", "clips", "crops")
        of_media: dict[str, Any] = {name: answer.get(name) for name in media_names}
        profiled_names = (
            "margin",
            "agreement",
            "agreement_low",
            "margin_agreement",
            "cascade_accuracy",
            "cosine",
            "cosine_low",
            "cosine_p1",
            "cosine_p5",
            "recall_1",
            "recall_10",
            "mixed_recall_1",
            "mixed_recall_10",
        )
        levels = tuple(
            Level(
                **{name: level[name] for name in level_names},
                **{name: level.get(name) for name in profiled_names},
            )
            for level in answer["levels"]
        )
        return cls(
            input_size=(channels, height, width),
            levels=levels,
            modality=answer.get("modality", "image"),
            merging=answer.get("merging", "paper"),
            activation=answer.get("activation", "softmax"),
            embedding_dim=answer.get("embedding_dim"),
            matryoshka=answer.get("matryoshka", False),
            label_sets={each["name"]: each["labels"] for each in answer.get("label_sets", ())},
            **of_media,
            **{name: answer[name] for name in names},
        )
