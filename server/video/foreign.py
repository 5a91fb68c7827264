"""Name the format of a file that is not decoded, so that its sender knows what to convert."""

from __future__ import annotations

from server.audio import foreign as foreign_sound

_SIGNATURES = (
    (b"#EXTM3U", "an HLS playlist"),
    (b"ffconcat", "a list of files"),
    (b"v=0\n", "SDP, the description of a stream"),
    (b"v=0\r\n", "SDP, the description of a stream"),
    (b"FLV\x01", "Flash video"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media"),
    (b"\x00\x00\x01\xba", "an MPEG program stream"),
    (b"\x00\x00\x01\xb3", "a raw MPEG video"),
    (b"\x00\x00\x00\x01", "a raw H.264 or HEVC stream"),
    (b"DKIF", "IVF"),
    (b"YUV4MPEG2", "YUV4MPEG2"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "MXF"),
    (b".RMF", "RealMedia"),
    (b"nut/multimedia container\x00", "NUT"),
    (b"GIF87a", "a GIF"),
    (b"GIF89a", "a GIF"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\x1aE\xdf\xa3", "a relative of Matroska"),
    (b"OggS", "Ogg"),
    (b"fLaC", "a FLAC sound"),
    (b"ID3", "an MP3 sound"),
)
_RIFF_TYPES = {b"AVI ": "AVI", b"WAVE": "a WAV sound", b"WEBP": "a WebP image"}
_BRANDS = {
    b"M4A ": "M4A, a sound",
    b"M4B ": "M4B, a sound",
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"heic": "a HEIC image",
    b"heix": "a HEIC image",
    b"hevc": "a HEIC image",
    b"mif1": "a HEIF image",
    b"msf1": "a HEIF image",
    b"crx ": "a camera's raw file",
}
# What follows the beginning of an MP4: it cannot be decoded alone.
_FRAGMENTS = {b"styp", b"moof", b"sidx"}
_TRANSPORT_SYNC = 0x47
# Bytes before the first packet of a transport stream, and from one to the next: of plain ones, and
# of those with a time before each packet.
_TRANSPORT_LAYOUTS = ((0, 188), (4, 192))
_TRANSPORT_PACKETS = 3
_MARKUP_BYTES = 1000


def name_foreign_brand(brand: bytes) -> str | None:
    """Return what a file of the ISO family with the major ``brand`` is if it is no video."""
    return _BRANDS.get(brand)


def name_format(body: bytes) -> str | None:
    """Return the name of the format that ``body`` seems to have, or None."""
    for signature, name in _SIGNATURES:
        if body.startswith(signature):
            return name
    if body.startswith(b"RIFF") and body[8:12] in _RIFF_TYPES:
        return _RIFF_TYPES[body[8:12]]
    if body[4:8] == b"ftyp":
        return name_foreign_brand(body[8:12])
    if body[4:8] in _FRAGMENTS:
        return "a fragment of an MP4 without its beginning"
    if _is_transport_stream(body):
        return "an MPEG transport stream"
    if b"<MPD" in body[:_MARKUP_BYTES]:
        return "a DASH manifest"
    return foreign_sound.name_format(body)


def _is_transport_stream(body: bytes) -> bool:
    for start, step in _TRANSPORT_LAYOUTS:
        marks = body[start : start + _TRANSPORT_PACKETS * step : step]
        if len(marks) == _TRANSPORT_PACKETS and set(marks) == {_TRANSPORT_SYNC}:
            return True
    return False
