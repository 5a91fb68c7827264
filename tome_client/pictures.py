"""Convert the accepted forms of an image to encoded bytes."""

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
    """Return the encoded image.

    Bytes stay unchanged, paths and open files are read, and Pillow images are encoded as PNG.

    Raises:
        OSError: the file is not readable.
        TypeError: ``image`` has another type.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    # A caller with a Pillow image has imported Pillow already, so no import is needed here.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        file = io.BytesIO()
        # Fast compression: the file is larger, but takes no longer to decode.
        png_image = image if image.mode in _PNG_MODES else image.convert("RGB")
        png_image.save(file, "PNG", compress_level=1)
        return file.getvalue()
    content = image.read() if hasattr(image, "read") else None
    if not isinstance(content, bytes):
        raise TypeError(
            "an image must be bytes, a path, a binary file or a Pillow image, not"
            f" {type(image).__name__}"
        )
    return content
