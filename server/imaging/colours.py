"""Colours and transparency of a decoded image: as a viewer shows it, over white, in 8 bits.

Pillow compares the transparent colour of a PNG (chunk ``tRNS``) with samples that it has scaled,
and of 16 bits with their upper 8; and a bitmap whose alpha is zero everywhere is none.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from server.imaging.container import StrippedImage

# Scales 16 bits to 8: 65535 / 255.
_GREY_16_TO_8 = 257
_MAX_GREY_16 = 65535
_WHITE = 255
# Rows handled at a time, so that arrays of wider numbers stay small.
_ROWS = 256

# By Pillow's name for the samples in the file: what a sample is multiplied with.
_GREY_SCALES = {"1": 255, "L;2": 85, "L;4": 17, "L": 1}
_GREY_16 = "I;16B"
_RGB_16 = "RGB;16B"
_RGB_16_LOWER_BYTES = "RGB;16L"


def correct_transparency(
    opened: ImageFile.ImageFile,
    raw_mode: Any,
    stripped: StrippedImage,
) -> Image.Image:
    """Return ``opened``, a PNG or a bitmap that is loaded, with the transparency it declares.

    Args:
        raw_mode: Pillow's name for the samples in the file.
    """
    if stripped.format == "BMP":
        return _without_empty_alpha(opened)
    if "transparency" in opened.info:
        return _with_transparent_colour(opened, str(raw_mode), stripped)
    return opened


def _without_empty_alpha(image: Image.Image) -> Image.Image:
    """Return a bitmap without alpha if that is zero everywhere: its writer did not set it."""
    if image.mode != "RGBA" or image.getchannel("A").getextrema() != (0, 0):
        return image
    return image.convert("RGB")


def _with_transparent_colour(
    image: Image.Image,
    raw_mode: str,
    stripped: StrippedImage,
) -> Image.Image:
    """Correct the transparency of a PNG (PNG specification, section 11.3.1.1).

    Of samples of less than 16 bits, only the lower bits of a transparent colour count.
    """
    chunk = stripped.transparency
    colour = [int.from_bytes(chunk[index : index + 2], "big") for index in range(0, len(chunk), 2)]
    if image.mode == "P":
        image.info["transparency"] = chunk
    elif scale := _GREY_SCALES.get(raw_mode):
        largest_sample = 255 // scale
        image.info["transparency"] = (colour[0] & largest_sample) * scale
    elif raw_mode == "RGB":
        image.info["transparency"] = tuple(value & 255 for value in colour[:3])
    elif raw_mode == _GREY_16:
        return _whiten_grey_16(image, colour[0])
    elif raw_mode == _RGB_16:
        return _whiten_rgb_16(image, np.array(colour[:3], np.uint16), stripped.body)
    return image


def _whiten_grey_16(image: Image.Image, transparent: int) -> Image.Image:
    grey = np.asarray(image)
    scaled = to_8_bits(grey)
    scaled[grey == transparent] = _WHITE
    return Image.fromarray(scaled)


def _whiten_rgb_16(
    image: Image.Image,
    transparent: npt.NDArray[np.uint16],
    body: bytes,
) -> Image.Image:
    """Make the pixels of ``image`` that have the colour ``transparent`` white.

    Pillow decodes the upper bytes of the samples; the lower ones are decoded here.
    """
    with Image.open(io.BytesIO(body), formats=("PNG",)) as opened:
        opened.tile = [opened.tile[0]._replace(args=_RGB_16_LOWER_BYTES)]
        opened.load()
        lower_bytes = opened
    upper = transparent >> 8
    lower = transparent & 255
    del image.info["transparency"]
    for top in range(0, image.height, _ROWS):
        strip = (0, top, image.width, min(top + _ROWS, image.height))
        matches = np.asarray(image.crop(strip)) == upper
        matches &= np.asarray(lower_bytes.crop(strip)) == lower
        mask = Image.fromarray(matches.all(axis=-1))
        image.paste("white", strip, mask)
    return image


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert ``image`` to ``mode``, ``L`` or ``RGB``, over white."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = _paste_over_white(image)
    if image.mode == mode:
        return image
    return image.convert(mode)


def _paste_over_white(image: Image.Image) -> Image.Image:
    layer = image
    if image.mode != "RGBA":
        layer = image.convert("RGBA")
    background = Image.new("RGB", layer.size, "white")
    background.paste(layer, mask=layer)
    return background


def to_8_bits(grey: npt.NDArray[Any], rows: int = _ROWS) -> npt.NDArray[np.uint8]:
    """Scale grey values from 0..65535 to 0..255 and round.

    Works on ``rows`` rows at a time: 64-bit integers of a whole image would take too much memory.
    """
    scaled = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), rows):
        bottom = top + rows
        wide = grey[top:bottom].astype(np.int64)
        clipped = np.clip(wide, 0, _MAX_GREY_16)
        rounded = clipped + _GREY_16_TO_8 // 2
        scaled[top:bottom] = rounded // _GREY_16_TO_8
    return scaled
