"""What a client is told that sends a sound to a model of images, or an image to one of sound."""

from __future__ import annotations

from server.audio import formats
from server.errors import UnsupportedFormat
from server.imaging import decode
from server.media.modality import Modality


def name_modality(
    error: UnsupportedFormat, body: bytes, modality: Modality, model: str
) -> UnsupportedFormat:
    """Return the error of a ``body`` of another modality than the model takes.

    Args:
        error: returned as it is where the body is of no modality that is known here.
        modality: what the model takes.
        model: how the error calls it.
    """
    if modality is Modality.AUDIO:
        found = decode.sniff(body)
        kind = "an image"
        wanted = f"sounds: {formats.SUPPORTED}"
    else:
        found = formats.sniff(body)
        kind = "a sound"
        wanted = f"images: {decode.SUPPORTED}"
    if found is None:
        return error
    return UnsupportedFormat(f"the body is {kind} ({found}); {model} takes {wanted}")
