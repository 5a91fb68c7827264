"""The images that requests carry: image files, unchanged, or one generated JPEG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from server.errors import ConfigError
from server.imaging.image_files import image_files

EXAMPLES = Path(__file__).parents[1] / "examples"

# Size in pixels of the shapes in the generated image, and their weight when blended.
_SHAPES = ((64, 0.6), (16, 0.25), (4, 0.1), (1, 0.05))


@dataclass(frozen=True)
class Picture:
    """The body of a request, and its name in reports."""

    name: str
    content: bytes


def read_pictures(paths: Sequence[Path]) -> tuple[Picture, ...]:
    """Read each file, and each image file of each folder.

    Without ``paths`` these are the examples, or a generated JPEG if there are none.

    Raises:
        ConfigError: a path cannot be read, or a folder has no image.
    """
    if not paths and not EXAMPLES.is_dir():
        return (Picture("generated.jpg", generate_jpeg()),)
    files: list[Path] = []
    for path in paths or [EXAMPLES]:
        if path.is_dir():
            files += _image_files(path)
        else:
            files.append(path)
    try:
        return tuple(Picture(file.name, file.read_bytes()) for file in files)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror or error}") from error


def _image_files(folder: Path) -> list[Path]:
    files = image_files(folder)
    if not files:
        raise ConfigError(f"{folder} holds no image file")
    return files


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
