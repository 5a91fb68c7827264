"""Which videos are decoded: the format is told by content. Needs no library but Python's own."""

from __future__ import annotations

from server.errors import UnsupportedFormat
from server.video import boxes, ebml
from server.video.foreign import name_foreign_brand, name_format

FORMATS = ("MP4", "MOV", "WebM", "MKV")
SUPPORTED = (
    "allowed are MP4, MOV, WebM and MKV with H.264, HEVC, VP8, VP9, AV1 or MPEG-4 (part 2) video"
)
_QUICKTIME_BRAND = b"qt  "
# With which a MOV begins that is older than file types.
_FIRST_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_DOCUMENT_TYPES = {"webm": "WebM", "matroska": "MKV"}
_DEMUXERS = {"MP4": "mov", "MOV": "mov", "WebM": "matroska", "MKV": "matroska"}


def sniff(body: bytes) -> str | None:
    """Return the format in `FORMATS` whose signature ``body`` has, or None."""
    first_box = body[4:8]
    if first_box == b"ftyp":
        brand = body[8:12]
        if name_foreign_brand(brand):
            return None
        return "MOV" if brand == _QUICKTIME_BRAND else "MP4"
    if first_box in _FIRST_BOXES:
        return "MOV"
    return _DOCUMENT_TYPES.get(ebml.document_type(body) or "")


def find_demuxer(body: bytes) -> str:
    """Check the outer parts of ``body``; return FFmpeg's name of the demuxer that reads it.

    Raises:
        UnsupportedFormat: it has the signature of none of `FORMATS`.
        BadMedia: it is truncated or damaged.
        TooLarge: it consists of too many parts.
    """
    found = sniff(body)
    if found is None:
        name = name_format(body)
        what = f"{name}, which is not supported" if name else "not a video of a supported format"
        raise UnsupportedFormat(f"the body is {what}; {SUPPORTED}")
    demuxer = _DEMUXERS[found]
    if demuxer == "mov":
        boxes.check_boxes(body)
    else:
        ebml.check_elements(body)
    return demuxer
