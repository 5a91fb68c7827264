"""What a client is told that sends another modality than the model takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.audio import formats as sounds
from server.errors import UnsupportedFormat
from server.imaging import decode as images
from server.media.modality import Modality
from server.video import formats as videos


@dataclass(frozen=True)
class _Formats:
    """The formats of one modality.

    Attributes:
        one: what a body of it is called.
        sniff: returns the format of a body, or None.
        supported: says which are allowed.
    """

    one: str
    sniff: Callable[[bytes], str | None]
    supported: str


_FORMATS = {
    Modality.IMAGE: _Formats("an image", images.sniff, images.SUPPORTED),
    Modality.AUDIO: _Formats("a sound", sounds.sniff, sounds.SUPPORTED),
    Modality.VIDEO: _Formats("a video", videos.sniff, videos.SUPPORTED),
}


def name_modality(
    error: UnsupportedFormat, body: bytes, modality: Modality, model: str
) -> UnsupportedFormat:
    """Return the error of a ``body`` of another modality than the model takes.

    Args:
        error: returned as it is where the body is of no other modality that is known here.
        modality: what the model takes.
        model: how the error calls it.
    """
    wanted = f"{modality.noun}s: {_FORMATS[modality].supported}"
    for other, formats in _FORMATS.items():
        found = None if other is modality else formats.sniff(body)
        if found is not None:
            return UnsupportedFormat(f"the body is {formats.one} ({found}); {model} takes {wanted}")
    return error
