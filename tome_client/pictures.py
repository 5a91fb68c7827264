"""Convert the accepted forms of an image, a sound or a video to encoded bytes."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tome_client.arrays import encode_array

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    ImageLike = bytes | str | os.PathLike[str] | BinaryIO | PIL.Image.Image | np.ndarray

_PNG_MODES = {"1", "L", "LA", "I;16", "I;16B", "P", "RGB", "RGBA"}
# Modes with transparency that no file format takes, and the nearest one that PNG takes.
_TRANSPARENT_MODES = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
_MAX_GREY_8 = 255
_MAX_GREY_16 = 65535
_ORIENTATION = 0x0112  # EXIF 2.32, section 4.6.4


def encode(image: ImageLike) -> bytes:
    """Return the encoded image, sound or video: the server tells its format from its content.

    Bytes stay unchanged, paths and open files are read, Pillow images and numpy arrays are encoded
    as PNG.

    Raises:
        OSError: the file is not readable.
        TypeError: ``image`` has another type, or an array another dtype.
        ValueError: the shape of an array, the values of a Pillow image, or an empty file.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    # A caller with a Pillow image or an array has imported its package already, so no import is
    # needed here.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return _encode_pillow(image)
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(image, "__array__"):  # torch's tensors as well
        return encode_array(numpy.asarray(image))
    if hasattr(image, "read"):
        return _read(image)
    raise TypeError(
        "an image must be bytes, a path, a binary file, a Pillow image or a numpy array, and a"
        f" sound or a video one of the first three, not {type(image).__name__}"
    )


def _read(file: Any) -> bytes:
    """Return the content of an open file, from its position on; from its start if it is at its end.

    Raises:
        TypeError: the file is a text file or an asynchronous one.
        ValueError: the file is empty or closed.
    """
    content = _read_rest(file)
    if not content and hasattr(file, "seek"):
        file.seek(0)  # at its end since the image was written to it
        content = _read_rest(file)
    if not content:
        raise ValueError(f"the file {file!r} is empty")
    return content


def _read_rest(file: Any) -> bytes:
    content = file.read()
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    if isinstance(content, str):
        raise TypeError(f"the file {file!r} is open as text; open it with the mode 'rb'")
    if hasattr(content, "close"):
        content.close()  # a coroutine that nobody awaits
    raise TypeError(
        f"read() of {type(file).__name__} returns {type(content).__name__}, not bytes; pass the"
        " bytes"
    )


def _encode_pillow(image: PIL.Image.Image) -> bytes:
    """Return the image as PNG, with the orientation of the file that it was opened from."""
    image.load()
    options: dict[str, Any] = {}
    if image.format is not None:  # as opened: an image that was computed from it has no format
        exif = image.getexif()
        if _ORIENTATION in exif:
            orientation_alone = type(exif)()
            orientation_alone[_ORIENTATION] = exif[_ORIENTATION]
            options["exif"] = orientation_alone
    file = io.BytesIO()
    # Fast compression: the file is larger, but takes no longer to decode.
    _to_png_mode(image).save(file, "PNG", compress_level=1, **options)
    return file.getvalue()


def _to_png_mode(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image in a mode that PNG takes. Raises `ValueError` as `_to_grey`."""
    if image.mode in _PNG_MODES:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _to_grey(image)
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    return image.convert(_TRANSPARENT_MODES.get(image.mode, "RGB"))


def _to_grey(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return an image of integers or floats as grey in 8 bits; in 16 if a value needs them.

    Floats up to 1 are on a scale of 0 to 1.

    Raises:
        ValueError: a value is negative or above 65535.
    """
    numbers = image if image.mode == "F" else image.convert("I")
    lowest, highest = numbers.getextrema()
    assert isinstance(lowest, int | float) and isinstance(highest, int | float)
    if not 0 <= lowest <= highest <= _MAX_GREY_16:
        raise ValueError(
            f"an image of mode {image.mode} has values from {lowest} to {highest}; scale them to"
            " 0 to 255, or to 0 to 65535"
        )
    if highest > _MAX_GREY_8:
        return numbers.convert("I").convert("I;16")
    if image.mode == "F" and highest <= 1:
        numbers = numbers.point(lambda value: value * _MAX_GREY_8)
    return numbers.convert("L")


def _lab_to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import ImageCms

    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted
