"""The modalities: what a model takes."""

from __future__ import annotations

from enum import StrEnum


class Modality(StrEnum):
    """What a model takes: images, sound, or video."""

    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"

    @property
    def noun(self) -> str:
        """The word for one file of it: image, sound or video."""
        return "sound" if self is Modality.AUDIO else self.value
