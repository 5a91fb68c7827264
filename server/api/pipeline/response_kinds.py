"""The kinds of responses: labelled classes, features, or a picture of the merged regions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from server.api.pipeline import image_responses as images
from server.api.pipeline import media_responses as media
from server.api.pipeline.image_responses import FinishedImage
from server.api.pipeline.media_responses import FinishedMedia
from server.ipc.messages import OutputKind

T = TypeVar("T")


@dataclass(frozen=True)
class ResponseKind(Generic[T]):
    """What a route returns for an image, a sound or a video that has run.

    Attributes:
        output: what the engine computes.
        build: makes the response for an image.
        build_media: makes the response for a sound or a video.
        is_picture: they need the pixels and take milliseconds, so they run in a thread; a request
            has one picture.
    """

    output: OutputKind
    build: Callable[[FinishedImage], T]
    build_media: Callable[[FinishedMedia], T]
    is_picture: bool = False


CLASSES = ResponseKind[Any]("classes", images.class_fields, media.build_classes)
FEATURES = ResponseKind("features", images.build_embedding, media.build_embedding)
RAW_FEATURES = ResponseKind("features", images.build_raw_features, media.build_raw_features)
PICTURE = ResponseKind("source", images.build_picture, media.build_picture, is_picture=True)
