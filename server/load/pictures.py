"""What is sent: image files as they are, whatever they hold; or one photograph-like JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from server.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})


@dataclass(frozen=True)
class Picture:
    """The body of a request, and what to call it."""

    name: str
    content: bytes


def read_pictures(paths: Sequence[Path]) -> tuple[Picture, ...]:
    """Each file, and each image file of each folder; without ``paths`` the examples, or a generated JPEG.

    Raises:
        ConfigError: a path cannot be read, or a folder has no image.
    """
    if not paths:
        return (
            read_pictures([EXAMPLES]) if EXAMPLES.is_dir() else (Picture("generated.jpg", jpeg()),)
        )
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS)
            if not found:
                raise ConfigError(f"{path} holds no image file")
            files += found
        else:
            files.append(path)
    try:
        return tuple(Picture(file.name, file.read_bytes()) for file in files)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror or error}") from error


def jpeg(width: int = 500, height: int = 375) -> bytes:
    """The same picture every time, with shapes large and small, so that it compresses and decodes as photographs do."""
    from PIL import Image

    random = Random(0)
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    for scale, weight in ((64, 0.6), (16, 0.25), (4, 0.1), (1, 0.05)):
        size = (-(-width // scale), -(-height // scale))
        coarse = Image.frombytes("RGB", size, random.randbytes(3 * size[0] * size[1]))
        picture = Image.blend(
            picture, coarse.resize((width, height), Image.Resampling.BICUBIC), weight
        )
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
