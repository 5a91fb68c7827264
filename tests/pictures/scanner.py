"""Damaged files that Pillow opens, and whether this repository decodes them too."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Iterator

from PIL import Image

from server.errors import RequestError
from server.imaging.decode import FORMATS, decode
from tests.pictures.compare import MAX_PIXELS, MAX_SIDE, SQUASHED
from tests.pictures.generate import pictures

# Refusals that docs/images.md explains.
_LIMIT = 413
_RUN_LENGTHS = "run lengths"
_BMP_BITS = slice(28, 30)


def damaged(count: int, seed: int) -> Iterator[bytes]:
    """Yield ``count`` files: pictures of every kind, each damaged a little."""
    choose = random.Random(seed)
    for picture in pictures(count, seed):
        body = picture.body
        for _ in range(choose.randint(1, 3)):
            body = _damage(body, choose)
        yield body


def _damage(body: bytes, choose: random.Random) -> bytes:
    # Headers are short, and the beginning of a file.
    largest = choose.choice([30, 100, 300, len(body)])
    start = choose.randrange(min(largest, len(body)) or 1)
    end = start + choose.choice([1, 1, 2, 4, 10])
    new = bytes(choose.choices([0, 0xFF, choose.randrange(256)], k=end - start))
    match choose.randrange(6):
        case 0:
            return body[:start] + new + body[end:]
        case 1:
            return body[:start] + new + body[start:]
        case 2:
            return body[:start] + body[end:]
        case 3:
            return body[:start] + body[start : start + 30] + body[start:]
        case 4:
            flipped = body[start : start + 1] or b"\0"
            bit = bytes([flipped[0] ^ 1 << choose.randrange(8)])
            return body[:start] + bit + body[start + 1 :]
    cut = choose.choice([1, 2, 3, 5, 8, 13])
    return body[:-cut]


def unexplained(body: bytes) -> str | None:
    """Return why a file that Pillow opens is refused, None if it is not or docs/images.md says so.

    What is larger than the limits is not opened.
    """
    try:
        decode(body, SQUASHED, MAX_PIXELS, MAX_SIDE)
    except RequestError as error:
        explained = error.status == _LIMIT or _RUN_LENGTHS in error.detail
        if not explained and _pillow_opens(body):
            return f"{error.status}: {error.detail}"
    return None


def _pillow_opens(body: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(body), formats=FORMATS) as opened:
                if max(opened.size) > MAX_SIDE or opened.width * opened.height > MAX_PIXELS:
                    return False
                opened.load()
                opened.convert("RGB")
                return not _is_misread(opened, body)
    except Exception:
        return False


def _is_misread(opened: Image.Image, body: bytes) -> bool:
    """Return whether Pillow took a bitmap of more bits for one of a bit: it reads too few bytes."""
    bits = int.from_bytes(body[_BMP_BITS], "little")
    return opened.format == "BMP" and opened.mode == "1" and bits != 1
