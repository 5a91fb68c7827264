"""The modalities: what a model takes."""

from __future__ import annotations

from enum import StrEnum


class Modality(StrEnum):
    """What a model takes: images, or sound."""

    IMAGE = "image"
    AUDIO = "audio"
