"""Name the format of a file that is not decoded, so that its sender knows what to convert.

The signatures are those of the formats' specifications; ``file`` (magic(5)) lists them too.
"""

from __future__ import annotations

from server.imaging.avif import read_brands

# Longest first where one begins another.
_SIGNATURES = (
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc", "JPEG XR"),
    (b"IIRO", "a camera's raw file"),
    (b"IIU\x00", "a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"FOVb", "a camera's raw file"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"8BPS", "Photoshop"),
    (b"gimp xcf", "GIMP's XCF"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x02\x00", "CUR"),
    (b"icns", "ICNS"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"\x8aMNG", "MNG"),
    (b"\x8bJNG", "JNG"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x01\xda", "SGI"),
    (b"AT&TFORM", "DjVu"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"Rar!", "RAR"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (b"OggS", "Ogg"),
    (b"FLV\x01", "Flash video"),
    (b"ID3", "MP3"),
    (b"\x93NUMPY", "NumPy's .npy"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
)
# P1 to P7, then white space.
_NETPBM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"Pf", b"PF")

_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
_ANY_BRAND: set[bytes] = set()
_BRANDS = (
    ({b"avif", b"avis"}, "AVIF"),
    (_HEIC_BRANDS, "HEIC"),
    ({b"crx "}, "a camera's raw file"),
    ({b"jp2 ", b"jpx ", b"jpm "}, "JPEG 2000"),
    ({b"mif1", b"msf1"}, "HEIF"),
    ({b"qt  "}, "QuickTime video"),
    (_ANY_BRAND, "MP4 or another ISO media file"),
)
_RIFF_TYPES = {b"WAVE": "WAV", b"AVI ": "AVI video", b"ACON": "ANI"}
_DICOM = slice(128, 132)
_MARKUP_BYTES = 1000


def name_format(body: bytes) -> str | None:
    """Return the name of the format that ``body`` seems to have, or None."""
    for signature, name in _SIGNATURES:
        if body.startswith(signature):
            return name
    if brands := read_brands(body):
        return _name_by_brand(brands)
    if body.startswith(b"RIFF"):
        return _RIFF_TYPES.get(body[8:12])
    if body[_DICOM] == b"DICM":
        return "DICOM"
    if body.startswith(_NETPBM) and body[2:3].isspace():
        return "a Netpbm image"
    return _name_markup(body)


def _name_by_brand(brands: set[bytes]) -> str:
    names = [name for known, name in _BRANDS if known == _ANY_BRAND or known & brands]
    return names[0]


def _name_markup(body: bytes) -> str | None:
    beginning = body[:_MARKUP_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not beginning.startswith(b"<"):
        return None
    if b"<svg" in beginning:
        return "SVG"
    if beginning.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    return "XML" if beginning.startswith(b"<?xml") else None
