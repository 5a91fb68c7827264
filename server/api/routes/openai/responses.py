"""The response to a request for embeddings."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from server.api.pipeline import image_responses as images
from server.api.pipeline import media_responses as media
from server.api.pipeline.image_responses import FinishedImage
from server.api.pipeline.media_responses import FinishedMedia
from server.api.pipeline.response_kinds import ResponseKind
from server.api.routes.openai.requests import EmbeddingsRequest, EncodingFormat


class EmbeddedInput(NamedTuple):
    """One input that has run.

    Attributes:
        vector: its embedding, float32.
        tokens: of all its windows, before merging.
        details: how it was computed, as in the answer of ``/embed``.
    """

    vector: npt.NDArray[np.float32]
    tokens: int
    details: dict[str, Any]


def _embedded_image(image: FinishedImage) -> EmbeddedInput:
    tokens = image.params.model.tokens
    return EmbeddedInput(images.vector_of(image), tokens, images.image_fields(image))


def _embedded_media(finished: FinishedMedia) -> EmbeddedInput:
    tokens = finished.params.model.tokens * len(finished.windows)
    return EmbeddedInput(media.vector_of(finished), tokens, media.media_fields(finished))


EMBEDDED_INPUTS = ResponseKind("features", _embedded_image, _embedded_media)


def embedding_list(request: EmbeddingsRequest, embedded: Sequence[EmbeddedInput]) -> dict[str, Any]:
    """Return the members of an `EmbeddingList` for all inputs of a request, in their order."""
    tokens = sum(each.tokens for each in embedded)
    return {
        "object": "list",
        "model": request.params.model.name,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": encode(each.vector, request.encoding_format),
                "tome": each.details,
            }
            for index, each in enumerate(embedded)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def encode(vector: npt.NDArray[np.float32], encoding_format: EncodingFormat) -> list[float] | str:
    """Return a vector as numbers, or as little-endian float32 in base64."""
    if encoding_format == "float":
        return vector.tolist()
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
