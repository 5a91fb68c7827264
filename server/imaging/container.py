"""An encoded image without its metadata, and the helpers that parsers of image files share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.errors import TooLarge

# A file may have this many parts (segments, chunks, blocks), plus one for each so many bytes.
_MAX_PARTS = 5000
_BYTES_PER_EXTRA_PART = 512


@dataclass(frozen=True)
class Frame:
    """What the header of a JPEG says that all decoders read in the same way.

    Attributes:
        components: 1, grey, or 3, YCbCr.
    """

    width: int
    height: int
    components: int


@dataclass(frozen=True)
class StrippedImage:
    """An encoded image without the parts that its pixels do not need.

    Attributes:
        format: one of `server.imaging.decode.FORMATS`.
        orientation: from 1 to 8, or None where the decoder finds it.
        canvases: ``(width, height)`` of what the decoder allocates besides what the opened image
            says, or before that.
        transparency: the chunk ``tRNS`` of a PNG.
        frame: of a JPEG of the usual kind, else None.
    """

    format: str
    body: bytes
    orientation: int | None = 1
    canvases: tuple[tuple[int, int], ...] = ()
    transparency: bytes = b""
    frame: Frame | None = None


class PartCollector:
    """Collects the parts of a body that are kept, and limits how many parts it may have."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)
        self._kept: list[memoryview] = []
        extra = len(body) // _BYTES_PER_EXTRA_PART
        self._parts_left = _MAX_PARTS + extra

    def count(self) -> None:
        """Count one part. Raises `TooLarge` if the body has too many."""
        self._parts_left -= 1
        if self._parts_left < 0:
            raise TooLarge("the image consists of too many parts; save it again without metadata")

    def keep(self, start: int, end: int | None = None) -> None:
        """Keep the bytes from ``start`` to ``end``, by default to the end of the body."""
        self._kept.append(self._body[start:end])

    def join(self) -> bytes:
        """Return all kept bytes in order."""
        return b"".join(self._kept)


def read_number(
    body: bytes,
    start: int,
    size: int,
    order: Literal["big", "little"] = "big",
) -> int:
    """Return the unsigned integer of ``size`` bytes at ``start``.

    Raises:
        IndexError: the body ends before it does.
    """
    end = start + size
    if end > len(body):
        raise IndexError
    return int.from_bytes(body[start:end], order)
