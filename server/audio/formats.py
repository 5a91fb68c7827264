"""Which sounds are decoded: the format is told by content. Needs no library but Python's own."""

from __future__ import annotations

from server.audio.foreign import name_format
from server.audio.id3 import skip_tags
from server.audio.mp3 import is_mp3, open_mp3
from server.audio.ogg import is_ogg, open_ogg
from server.audio.stream import Stream
from server.audio.wav import is_wav, open_wav
from server.errors import UnsupportedFormat
from server.media.limits import AudioLimits

FORMATS = ("WAV", "FLAC", "OGG", "MP3")
SUPPORTED = "allowed are WAV, FLAC, OGG (Vorbis, Opus) and MP3"
_FLAC_SIGNATURE = b"fLaC"


def sniff(body: bytes) -> str | None:
    """Return the format in `FORMATS` whose signature ``body`` has, or None."""
    if is_wav(body):
        return "WAV"
    if is_ogg(body):
        return "OGG"
    start = skip_tags(body)
    if body.startswith(_FLAC_SIGNATURE, start):
        return "FLAC"
    if is_mp3(body, start):
        return "MP3"
    return None


def open_stream(body: bytes, limits: AudioLimits) -> Stream:
    """Detect the format of ``body`` and remove what its samples do not need.

    Raises:
        UnsupportedFormat: it has the signature of none of `FORMATS`, or a codec that is not
            decoded.
        BadMedia: it ends before its samples, or has less than it says.
        TooLarge: it consists of too many parts, or a WAV's header exceeds a limit.
    """
    start = skip_tags(body)
    match sniff(body):
        case "WAV":
            return open_wav(body, limits)
        case "OGG":
            return open_ogg(body)
        case "FLAC":
            return Stream("FLAC", body[start:])
        case "MP3":
            return open_mp3(body, start)
    name = name_format(body[start:])
    found = f"{name}, which is not supported" if name else "not a sound of a supported format"
    raise UnsupportedFormat(f"the body is {found}; {SUPPORTED}")
