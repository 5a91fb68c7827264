"""The response for one sound or video: the mean over its windows, or each window as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.api.contract.params import Params
from server.api.contract.schemas import (
    MediaAnswer,
    MediaEmbedding,
    SoundAnswer,
    SoundAnswerByWindow,
    SoundEmbedding,
    SoundEmbeddingByWindow,
    Timing,
    Tokens,
    VideoAnswer,
    VideoAnswerByWindow,
    VideoEmbedding,
    VideoEmbeddingByWindow,
    VideoWindowAnswer,
    VideoWindowEmbedding,
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
from server.media.transforms import AudioTransform, VideoTransform
from server.media.window_scores import best_classes
from server.video.contact_sheet import draw_clip

_DECIMALS = 6  # of seconds; a sample of 192 kHz takes 5 microseconds
_GAP = 8  # pixels between the pictures of two windows


@dataclass(frozen=True)
class _Schemas:
    """The types of the answers for one modality."""

    answer: type[MediaAnswer]
    answer_by_window: type[MediaAnswer]
    window_answer: type[WindowAnswer]
    embedding: type[MediaEmbedding]
    embedding_by_window: type[MediaEmbedding]
    window_embedding: type[WindowEmbedding]


_SCHEMAS = {
    Modality.AUDIO: _Schemas(
        SoundAnswer,
        SoundAnswerByWindow,
        WindowAnswer,
        SoundEmbedding,
        SoundEmbeddingByWindow,
        WindowEmbedding,
    ),
    Modality.VIDEO: _Schemas(
        VideoAnswer,
        VideoAnswerByWindow,
        VideoWindowAnswer,
        VideoEmbedding,
        VideoEmbeddingByWindow,
        VideoWindowEmbedding,
    ),
}


@dataclass(frozen=True)
class FinishedMedia:
    """One sound or video whose windows have run: everything that its response is built from.

    Attributes:
        info: what it is.
        windows: those that have run, in order of time.
        outcomes: one for each window. Of classes they have all if there are several windows, else
            the ``top_k`` best.
        batch_size: how many images shared the largest of their forward passes.
        inputs: of the windows, as of `Decoded`; only where the response is a picture.
    """

    params: Params
    info: MediaInfo
    windows: tuple[Window, ...]
    outcomes: tuple[Outcome, ...]
    timing: Timing
    batch_size: int
    inputs: npt.NDArray[Any] | None = None


def build_classes(media: FinishedMedia) -> MediaAnswer:
    """Return the best classes by their mean scores, with their labels."""
    params = media.params
    labels = params.labels
    schemas = _SCHEMAS[params.model.modality]
    classes, scores = best_classes(media.outcomes, params.top_k)
    fields = media_fields(media) | {"predictions": predictions_of(labels, classes, scores)}
    if params.windows is not Windows.EACH:
        return schemas.answer(**fields)
    windows = [
        schemas.window_answer(
            predictions=predictions_of(
                labels, outcome.classes[: params.top_k], outcome.scores[: params.top_k]
            ),
            **_window_fields(window, outcome, params.model),
        )
        for window, outcome in zip(media.windows, media.outcomes, strict=True)
    ]
    return schemas.answer_by_window(windows=windows, **fields)


def build_embedding(media: FinishedMedia) -> MediaEmbedding:
    """Return the mean of the pooled features as numbers."""
    schemas = _SCHEMAS[media.params.model.modality]
    fields = media_fields(media) | {"embedding": vector_of(media).tolist()}
    if media.params.windows is not Windows.EACH:
        return schemas.embedding(**fields)
    windows = [
        schemas.window_embedding(
            embedding=media.params.vectors.apply(features_of(outcome)).tolist(),
            **_window_fields(window, outcome, media.params.model),
        )
        for window, outcome in zip(media.windows, media.outcomes, strict=True)
    ]
    return schemas.embedding_by_window(windows=windows, **fields)


def build_raw_features(media: FinishedMedia) -> bytes:
    """Return the mean of the pooled features as little-endian float32, or a row for each window."""
    if media.params.windows is Windows.EACH:
        form = media.params.vectors
        vectors = [form.apply(features_of(outcome)) for outcome in media.outcomes]
    else:
        vectors = [vector_of(media)]
    return b"".join(vector.astype("<f4", copy=False).tobytes() for vector in vectors)


def build_picture(media: FinishedMedia) -> bytes:
    """Return a PNG of the merged regions in a spectrogram or a clip; windows below each other."""
    assert media.inputs is not None
    model = media.params.model
    pictures = [
        _draw_window(window_input, outcome, model)
        for window_input, outcome in zip(media.inputs, media.outcomes, strict=True)
    ]
    return encode_png(stack_pictures(pictures))


def most_merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the fewest tokens left, the first of them."""
    return min(outcomes, key=_tokens_out)


def vector_of(media: FinishedMedia) -> npt.NDArray[np.float32]:
    """Return the mean ``(D,)`` of the pooled features in the form that the request names."""
    return media.params.vectors.apply(mean_features(media.outcomes))


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


def _draw_window(window_input: npt.NDArray[Any], outcome: Outcome, model: ModelInfo) -> Image.Image:
    transform = model.transform
    source = np.frombuffer(outcome.source, "<i4")
    if isinstance(transform, VideoTransform):
        return draw_clip(window_input, source, model.prefix, model.grid, transform)
    assert isinstance(transform, AudioTransform)
    pixels = spectrogram(window_input, transform)
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
        "crop": window.crop,  # which windows of a sound do not have
    }


def media_fields(media: FinishedMedia) -> dict[str, Any]:
    """Return the fields that all JSON responses for sounds and videos share."""
    params = media.params
    model = params.model
    outcome = most_merged(media.outcomes)
    info = asdict(media.info) | {"seconds": round(media.info.seconds, _DECIMALS)}
    return {
        "model": model.name,
        "r": str(outcome.schedule),
        "r_requested": params.requested_r,
        "merging": model.merging,
        "tokens": Tokens(input=model.tokens, output=outcome.tokens_out),
        "timing_ms": media.timing,
        "batch_size": media.batch_size,
        "modality": model.modality.value,
        "media": info,
    }
