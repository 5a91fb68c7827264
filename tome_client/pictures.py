"""An image as the bytes of a file, whatever it is given as."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import PIL.Image

    ImageLike = bytes | str | os.PathLike[str] | BinaryIO | PIL.Image.Image

_PNG_MODES = {"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"}


def encode(image: ImageLike) -> bytes:
    """The encoded image: bytes as they are; what a path or an open file holds; a Pillow image as PNG.

    Raises:
        OSError: the file cannot be read.
        TypeError: it is nothing of these.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    # Whoever has a Pillow image has imported Pillow; nobody else needs it.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        file = io.BytesIO()
        # Quickly rather than small: decoding takes the same time.
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(
            file, "PNG", compress_level=1
        )
        return file.getvalue()
    content = image.read() if hasattr(image, "read") else None
    if not isinstance(content, bytes):
        raise TypeError(
            "an image is bytes, a path, a file open for bytes or a Pillow image, not"
            f" {type(image).__name__}"
        )
    return content
