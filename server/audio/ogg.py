"""Ogg: which codec it carries, and whether its last page is whole (RFC 3533, section 6)."""

from __future__ import annotations

from server.audio.stream import Stream
from server.errors import BadMedia, UnsupportedFormat

_CAPTURE = b"OggS"
_PAGE_HEADER = 27
_CODECS = (b"\x01vorbis", b"OpusHead")
_ALLOWED = "allowed in Ogg are Vorbis and Opus"
_FOREIGN = (
    (b"\x7fFLAC", "FLAC"),
    (b"fLaC", "FLAC"),
    (b"Speex", "Speex"),
    (b"\x80theora", "Theora video"),
    (b"BBCD", "Dirac video"),
    (b"fishead", "several streams"),
    (b"CELT", "CELT"),
    (b"\x80kate", "subtitles"),
)


def is_ogg(body: bytes) -> bool:
    """Whether ``body`` has the signature of an Ogg file."""
    return body.startswith(_CAPTURE)


def open_ogg(body: bytes) -> Stream:
    """Check codec and last page of ``body``.

    A recording that was stopped may lack the mark of its last page, and plays to its end all the
    same (RFC 7845, section 4). A page that says that it has more bytes than there are is truncated.

    Raises:
        UnsupportedFormat: its first stream is neither Vorbis nor Opus.
        BadMedia: its first or last page is truncated.
    """
    _check_whole(body, 0)
    packet = body[_page_start(body, 0) :]
    if not packet.startswith(_CODECS):
        names = [name for signature, name in _FOREIGN if packet.startswith(signature)]
        codec = names[0] if names else "an unknown codec"
        raise UnsupportedFormat(f"the Ogg has {codec}, which is not supported; {_ALLOWED}")
    _check_whole(body, body.rfind(_CAPTURE))
    return Stream("OGG", body)


def _check_whole(body: bytes, page: int) -> None:
    """Raise `BadMedia` if ``body`` has less than the whole page at offset ``page``."""
    start = _page_start(body, page)
    segments = body[page + _PAGE_HEADER : start]
    if start + sum(segments) > len(body):
        raise BadMedia("the Ogg is truncated: a page is incomplete")


def _page_start(body: bytes, page: int) -> int:
    """Return where the content of a page begins, behind its header and its table of segments."""
    if len(body) <= page + _PAGE_HEADER:
        raise BadMedia("the Ogg is truncated: it ends in the header of a page")
    count = body[page + _PAGE_HEADER - 1]
    return page + _PAGE_HEADER + count
