"""Name the format of a file that is not decoded, so that its sender knows what to convert."""

from __future__ import annotations

_SIGNATURES = (
    (b".snd", "AU"),
    (b"caff", "CAF"),
    (b"RF64", "RF64"),
    (b"BW64", "BW64"),
    (b"RIFX", "RIFX, a WAV of big-endian numbers"),
    (b"riff\x2e\x91\xcf\x11", "Wave64"),
    (b"#!AMR", "AMR"),
    (b"MThd", "MIDI"),
    (b"MAC ", "Monkey's Audio"),
    (b"wvpk", "WavPack"),
    (b"MPCK", "Musepack"),
    (b"MP+", "Musepack"),
    (b"TTA1", "True Audio"),
    (b"DSD ", "DSD"),
    (b"ADIF", "AAC"),
    (b"Creative Voice File", "Creative Voice"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media Audio"),
    (b"\x0b\x77", "AC-3"),
    (b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (b"FLV\x01", "Flash video"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
)
_IFF_TYPES = {
    (b"FORM", b"AIFF"): "AIFF",
    (b"FORM", b"AIFC"): "AIFF",
    (b"FORM", b"8SVX"): "8SVX",
    (b"RIFF", b"WEBP"): "a WebP image",
    (b"RIFF", b"AVI "): "AVI video",
    (b"RIFF", b"RMID"): "MIDI",
    (b"RIFF", b"CDXA"): "VCD video",
}
_BRANDS = {
    b"M4A ": "M4A (AAC)",
    b"M4B ": "M4A (AAC)",
    b"qt  ": "QuickTime video",
    b"avif": "an AVIF image",
    b"heic": "a HEIC image",
    b"3gp4": "3GP",
    b"3gp5": "3GP",
}
_ADTS = 0xFFF0
_ADTS_MASK = 0xFFF6  # sync word and layer


def name_format(body: bytes) -> str | None:
    """Return the name of the format that ``body`` seems to have, or None."""
    for signature, name in _SIGNATURES:
        if body.startswith(signature):
            return name
    if body[4:8] == b"ftyp":
        return _BRANDS.get(body[8:12], "MP4 or another ISO media file")
    if int.from_bytes(body[:2], "big") & _ADTS_MASK == _ADTS:
        return "AAC"
    return _IFF_TYPES.get((body[:4], body[8:12]))
