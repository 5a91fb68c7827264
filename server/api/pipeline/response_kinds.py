"""The kinds of responses: labelled classes, features, or a picture of the merged regions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.api.pipeline import image_responses as images
from server.api.pipeline import sound_responses as sounds
from server.api.pipeline.image_responses import FinishedImage
from server.api.pipeline.sound_responses import FinishedSound
from server.ipc.messages import OutputKind

T = TypeVar("T")


@dataclass(frozen=True)
class ResponseKind(Generic[T]):
    """What a route returns for an image or a sound that has run.

    Attributes:
        output: what the engine computes.
        build: makes the response for an image.
        build_sound: makes the response for a sound.
        is_picture: they need the pixels and take milliseconds, so they run in a thread; a request
            has one picture.
    """

    output: OutputKind
    build: Callable[[FinishedImage], T]
    build_sound: Callable[[FinishedSound], T]
    is_picture: bool = False


CLASSES = ResponseKind("classes", images.build_classes, sounds.build_classes)
FEATURES = ResponseKind("features", images.build_embedding, sounds.build_embedding)
RAW_FEATURES = ResponseKind("features", images.build_raw_features, sounds.build_raw_features)
PICTURE = ResponseKind("source", images.build_picture, sounds.build_picture, is_picture=True)
