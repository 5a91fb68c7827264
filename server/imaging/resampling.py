"""The compiled resampling: choosing, loading and calling it with ctypes.

It equals Pillow's, which resizes instead where the library is not compiled, or does not see the
pixels of this Pillow. The environment variable ``TOME_CPU_ISA``, where it is ``none``, switches it
off, as it does the kernels of `tome_core.backends.cpu`.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

# left, top, right, bottom of the part of an image that is resized, as Pillow's `resize` takes it
Box = tuple[float, float, float, float]

# Of mode ``L`` or ``RGB``, or ``uint8 (H, W, C)`` without gaps.
Picture = Image.Image | npt.NDArray[np.uint8]

# Fastest first.
LIBRARIES = ("_resampling_avx2", "_resampling")
# In the order of FILTERS in resampling.cpp.
FILTERS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
_INDEX_OF_FILTER = {resample: index for index, resample in enumerate(FILTERS)}
# By mode: channels, and bytes of a pixel in Pillow's memory.
_MODES = {"L": (1, 1), "RGB": (3, 4)}

_log = logging.getLogger("tome.decode")

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_get_pointer.restype = ctypes.c_void_p


def resample_planes(
    image: Picture,
    size: tuple[int, int],
    box: Box,
    resample: Image.Resampling,
) -> npt.NDArray[np.uint8] | None:
    """Return the part ``box`` of ``image`` resized to ``size``, along its rows first.

    Args:
        size: ``(height, width)``.

    Returns:
        ``uint8 (C, H, W)``, or None where Pillow has to do it: there is no library, the filter is
        ``NEAREST``, or Pillow holds the image in several pieces (by default from 16 MiB on).
    """
    library = choose_library()
    return None if library is None else call(library, image, size, box, resample)


def call(
    library: ctypes.CDLL,
    image: Picture,
    size: tuple[int, int],
    box: Box,
    resample: Image.Resampling,
) -> npt.NDArray[np.uint8] | None:
    """`resample_planes` by ``library``, one of `load`."""
    if resample not in _INDEX_OF_FILTER:
        return None
    if isinstance(image, np.ndarray):
        source_height, source_width, channels = image.shape
        pixel_bytes = channels
        pixels = image.ctypes.data
    else:
        source_width, source_height = image.size
        channels, pixel_bytes = _MODES[image.mode]
        try:
            # The second of two capsules, which keeps the pixels in place until it is deleted.
            array = image.__arrow_c_array__()[1]
        except ValueError:
            return None
        pointer = _get_pointer(array, b"arrow_array")
        pixels = library.tome_find_pixels(pointer, source_width * source_height, pixel_bytes)
        if pixels is None:
            return None
    height, width = size
    planes = np.empty((channels, height, width), np.uint8)
    left, top, right, bottom = box
    is_done = library.tome_resize(
        pixels,
        channels,
        pixel_bytes,
        source_width,
        source_height,
        left,
        right,
        top,
        bottom,
        _INDEX_OF_FILTER[resample],
        width,
        height,
        planes.ctypes.data,
    )
    return planes if is_done else None


@cache
def load(name: str) -> ctypes.CDLL | None:
    """Load one of `LIBRARIES`; None if it is not compiled, or this processor cannot run it."""
    paths = sorted(Path(__file__).parent.glob(f"{name}.*so"))
    if not paths:
        return None
    try:
        library = ctypes.CDLL(str(paths[0]))
        library.tome_supported.restype = ctypes.c_bool
        library.tome_resize.restype = ctypes.c_bool
        library.tome_find_pixels.restype = ctypes.c_void_p
        library.tome_find_pixels.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 2]
        library.tome_resize.argtypes = [
            ctypes.c_void_p,
            *[ctypes.c_int64] * 4,
            *[ctypes.c_float] * 4,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        ]
        is_supported = library.tome_supported()
    except (OSError, AttributeError) as error:
        _log.warning("the compiled resampling cannot be loaded; Pillow resizes instead: %s", error)
        return None
    return library if is_supported else None


@cache
def choose_library() -> ctypes.CDLL | None:
    """Load the fastest of `LIBRARIES`, if it is allowed and equals Pillow here."""
    if os.environ.get("TOME_CPU_ISA") == "none":
        return None
    libraries = [library for name in LIBRARIES if (library := load(name)) is not None]
    if not libraries:
        _log.warning(
            "the compiled resampling is missing (no C++ compiler at installation, or an old one?);"
            " Pillow resizes images instead"
        )
        return None
    if not all(_equals_pillow(libraries[0], mode) for mode in _MODES):
        _log.warning("the compiled resampling differs from this Pillow, which resizes instead")
        return None
    return libraries[0]


def _equals_pillow(library: ctypes.CDLL, mode: str) -> bool:
    """Return whether ``library`` reads the pixels of an image where this Pillow holds them."""
    image = Image.radial_gradient("L").crop((3, 40, 40, 69))
    if mode == "RGB":
        image = Image.merge("RGB", [image, image.rotate(90), image.rotate(180)])
    box = (0.5, 0.0, 36.25, float(image.height))
    expected = image.resize((17, image.height), Image.Resampling.BICUBIC, box)
    planes = call(library, image, (image.height, 17), box, Image.Resampling.BICUBIC)
    channels_last = np.asarray(expected).reshape(image.height, 17, -1)
    return planes is not None and np.array_equal(planes, channels_last.transpose(2, 0, 1))
