"""JPEG files of the usual kind, decoded by libjpeg-turbo without Pillow's reading in Python.

Pillow uses the same library in the same way, so the pixels are equal. Whatever the library remarks
upon, be it only a byte too many, is left to Pillow, which says what is an error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

from server.imaging.container import Frame


def decode_frame(
    body: bytes,
    frame: Frame,
    channels: int,
    reduction: int = 1,
) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of a JPEG as ``uint8 (H, W, C)``; None where Pillow has to decode them.

    Args:
        body: without metadata.
        frame: its header; its size is within the limits.
        channels: 1 or 3.
        reduction: 1, 2, 4 or 8, which divides its sides: they become so many times shorter.
    """
    if channels < frame.components:
        # Pillow computes grey from red, green and blue.
        return None
    height = frame.height // reduction
    width = frame.width // reduction
    colours = "RGB" if channels == 3 else "GRAY"
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            body, colours, min_height=height, min_width=width, strict=True
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, channels) else None
