"""The response for one sound: the mean over its windows, or each window as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.api.contract.params import Params
from server.api.contract.schemas import (
    Media,
    SoundAnswer,
    SoundAnswerByWindow,
    SoundEmbedding,
    SoundEmbeddingByWindow,
    Timing,
    Tokens,
    WindowAnswer,
    WindowEmbedding,
)
from server.api.contract.windows import Windows
from server.api.pipeline.image_responses import predictions_of
from server.audio.picture import oriented_grid, oriented_source, spectrogram
from server.imaging.visualization import draw_regions, encode_png
from server.ipc.messages import ModelInfo, Outcome
from server.media.decoded import MediaInfo, Window
from server.media.modality import Modality
from server.media.transforms import AudioTransform
from server.media.window_scores import best_classes

_DECIMALS = 6  # of seconds; a sample of 192 kHz takes 5 microseconds
_GAP = 8  # pixels between the pictures of two windows


@dataclass(frozen=True)
class FinishedSound:
    """One sound whose windows have run: everything that its response is built from.

    Attributes:
        windows: those that have run, in order of time.
        outcomes: one for each window. Of classes they have all if there are several windows, else
            the ``top_k`` best.
        batch_size: how many images shared the largest of their forward passes.
        inputs: of the windows, float32 ``(n, C, H, W)``; only where the response is a picture.
    """

    params: Params
    media: MediaInfo
    windows: tuple[Window, ...]
    outcomes: tuple[Outcome, ...]
    timing: Timing
    batch_size: int
    inputs: npt.NDArray[np.float32] | None = None


def build_classes(sound: FinishedSound) -> SoundAnswer:
    """Return the best classes by their mean scores, with their labels."""
    params = sound.params
    labels = params.model.labels
    classes, scores = best_classes(sound.outcomes, params.top_k)
    fields = _common_fields(sound) | {"predictions": predictions_of(labels, classes, scores)}
    if params.windows is not Windows.EACH:
        return SoundAnswer(**fields)
    windows = [
        WindowAnswer(
            predictions=predictions_of(
                labels, outcome.classes[: params.top_k], outcome.scores[: params.top_k]
            ),
            **_window_fields(window, outcome, params.model),
        )
        for window, outcome in zip(sound.windows, sound.outcomes, strict=True)
    ]
    return SoundAnswerByWindow(windows=windows, **fields)


def build_embedding(sound: FinishedSound) -> SoundEmbedding:
    """Return the mean of the pooled features as numbers."""
    fields = _common_fields(sound) | {"embedding": mean_features(sound.outcomes).tolist()}
    if sound.params.windows is not Windows.EACH:
        return SoundEmbedding(**fields)
    windows = [
        WindowEmbedding(
            embedding=features_of(outcome).tolist(),
            **_window_fields(window, outcome, sound.params.model),
        )
        for window, outcome in zip(sound.windows, sound.outcomes, strict=True)
    ]
    return SoundEmbeddingByWindow(windows=windows, **fields)


def build_raw_features(sound: FinishedSound) -> bytes:
    """Return the mean of the pooled features as little-endian float32, or a row for each window."""
    if sound.params.windows is Windows.EACH:
        return b"".join(outcome.features for outcome in sound.outcomes)
    return mean_features(sound.outcomes).astype("<f4").tobytes()


def build_picture(sound: FinishedSound) -> bytes:
    """Return a PNG of the spectrogram with its merged regions; of each window, below each other."""
    assert sound.inputs is not None
    model = sound.params.model
    pictures = [
        _draw_window(window_input, outcome, model)
        for window_input, outcome in zip(sound.inputs, sound.outcomes, strict=True)
    ]
    return encode_png(stack_pictures(pictures))


def most_merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the fewest tokens left, the first of them."""
    return min(outcomes, key=_tokens_out)


def mean_features(outcomes: Sequence[Outcome]) -> npt.NDArray[np.float32]:
    """Return the mean ``(D,)`` of the pooled features."""
    if len(outcomes) == 1:
        return features_of(outcomes[0])
    rows = np.stack([features_of(outcome) for outcome in outcomes])
    return rows.mean(axis=0, dtype=np.float64).astype(np.float32)


def features_of(outcome: Outcome) -> npt.NDArray[np.float32]:
    """Return the pooled features ``(D,)`` of one window."""
    return np.frombuffer(outcome.features, "<f4")


def stack_pictures(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return RGB pictures of one size below each other, with black gaps."""
    if len(pictures) == 1:
        return pictures[0]
    width, height = pictures[0].size
    stacked = Image.new("RGB", (width, len(pictures) * (height + _GAP) - _GAP))
    for index, picture in enumerate(pictures):
        stacked.paste(picture, (0, index * (height + _GAP)))
    return stacked


def _draw_window(
    window_input: npt.NDArray[np.float32], outcome: Outcome, model: ModelInfo
) -> Image.Image:
    assert isinstance(model.transform, AudioTransform)
    transform = model.transform
    pixels = spectrogram(window_input, transform)
    source = np.frombuffer(outcome.source, "<i4")
    oriented = oriented_source(source, model.prefix, model.grid, transform)
    return draw_regions(pixels, oriented, model.prefix, oriented_grid(model.grid, transform))


def _tokens_out(outcome: Outcome) -> int:
    return outcome.tokens_out


def _window_fields(window: Window, outcome: Outcome, model: ModelInfo) -> dict[str, Any]:
    return {
        "start": round(window.start, _DECIMALS),
        "end": round(window.end, _DECIMALS),
        "r": str(outcome.schedule),
        "tokens": Tokens(input=model.tokens, output=outcome.tokens_out),
    }


def _common_fields(sound: FinishedSound) -> dict[str, Any]:
    """Return the fields that all JSON responses for sounds share."""
    params = sound.params
    model = params.model
    outcome = most_merged(sound.outcomes)
    media = asdict(sound.media) | {"seconds": round(sound.media.seconds, _DECIMALS)}
    return {
        "model": model.name,
        "r": str(outcome.schedule),
        "r_requested": params.requested_r,
        "tokens": Tokens(input=model.tokens, output=outcome.tokens_out),
        "timing_ms": sound.timing,
        "batch_size": sound.batch_size,
        "modality": Modality.AUDIO.value,
        "media": Media(**media),
    }
