"""A generated image, for a load without files."""

from __future__ import annotations

import io
import math
from random import Random

# Size in pixels of the shapes in the generated image, and their weight when blended.
_SHAPES = ((64, 0.6), (16, 0.25), (4, 0.1), (1, 0.05))


def generate_jpeg(width: int = 500, height: int = 375) -> bytes:
    """Generate a JPEG, always the same, that compresses and decodes like a photograph."""
    from PIL import Image

    random = Random(0)
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    for scale, weight in _SHAPES:
        columns = math.ceil(width / scale)
        rows = math.ceil(height / scale)
        noise = random.randbytes(3 * columns * rows)
        coarse = Image.frombytes("RGB", (columns, rows), noise)
        shapes = coarse.resize((width, height), Image.Resampling.BICUBIC)
        picture = Image.blend(picture, shapes, weight)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
