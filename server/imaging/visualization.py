"""The picture of merging, as in the paper: each merged region in its mean colour, outlined."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

MIN_CELL = 16  # smallest side, in pixels, at which a patch is drawn
_SEED = 0
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
# Brightness of consecutive outlines, so that neighbouring hues differ in it too.
_BRIGHTNESS = np.array([1, 0.85, 0.7])
_OUTSIDE = -1  # region number around the grid

Grid = tuple[int, int]  # rows, columns


def draw_regions(
    pixels: npt.NDArray[np.uint8],
    source: npt.NDArray[np.integer],
    prefix: int,
    grid: Grid,
) -> Image.Image:
    """Draw which patches were merged, over the image that the model saw.

    Args:
        pixels: ``uint8 (C, H, W)`` of 1 or 3 channels.
        source: ``(N0,)``, for every input token the position of the token it ended in.
        prefix: number of prefix tokens, which are not patches.
        grid: rows and columns of patches.
    """
    regions = number_regions(source, prefix, grid)
    cell = cell_size(pixels.shape[-2:], grid)
    return paint(regions, mean_colours(pixels, regions), cell)


def number_regions(
    source: npt.NDArray[np.integer],
    prefix: int,
    shape: tuple[int, ...],
) -> npt.NDArray[np.intp]:
    """Return the number of the region of each patch, of ``shape``; else as `draw_regions`."""
    _, numbers = np.unique(source[prefix:], return_inverse=True)
    return numbers.reshape(shape)


def paint(
    regions: npt.NDArray[np.intp],
    colours: npt.NDArray[np.uint8],
    cell: Grid,
) -> Image.Image:
    """Draw each region in its colour, outlined.

    Args:
        regions: number of the region of each patch, ``(rows, columns)``.
        colours: of all regions, ``(n, 3)``. The picture need not show each of them.
        cell: height and width of a patch in the picture.
    """
    lines = outline_colours(len(colours))
    is_outline = outlines(regions, cell)[..., None]
    canvas = np.where(
        is_outline,
        lines[regions][:, None, :, None],
        colours[regions][:, None, :, None],
    )
    rows, columns = regions.shape
    return Image.fromarray(canvas.reshape(rows * cell[0], columns * cell[1], 3))


def encode_png(picture: Image.Image) -> bytes:
    """Encode ``picture`` as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def mean_colours(
    pixels: npt.NDArray[np.uint8],
    regions: npt.NDArray[np.intp],
) -> npt.NDArray[np.uint8]:
    """Return the mean colour ``(n, 3)`` of the pixels ``(C, H, W)`` in each of n regions.

    Args:
        regions: number of the region of each patch, ``(rows, columns)``.
    """
    _, height, width = pixels.shape
    rows, columns = regions.shape
    patch_rows = np.arange(height) * rows // height
    patch_columns = np.arange(width) * columns // width
    region_of_pixel = regions[patch_rows[:, None], patch_columns].ravel()
    channel_sums = [np.bincount(region_of_pixel, channel.ravel()) for channel in pixels]
    sums = np.stack(channel_sums, axis=1)
    counts = np.bincount(region_of_pixel)[:, None]
    means = np.rint(sums / counts).astype(np.uint8)
    return np.broadcast_to(means, (len(means), 3))  # grey becomes RGB


def cell_size(size: tuple[int, ...], grid: Grid) -> Grid:
    """Return the height and width at which a patch is drawn.

    It is the patch's own size, times the whole number that makes it at least `MIN_CELL`.
    """
    height = max(1, round(size[0] / grid[0]))
    width = max(1, round(size[1] / grid[1]))
    scale = math.ceil(MIN_CELL / min(height, width))
    return height * scale, width * scale


def outlines(regions: npt.NDArray[np.intp], cell: Grid) -> npt.NDArray[np.bool_]:
    """Return where outlines are drawn, just inside each region.

    The result is bool ``(rows, cell height, columns, cell width)``.
    """
    rows, columns = regions.shape
    width = max(1, min(cell) // MIN_CELL)
    padded = np.pad(regions, 1, constant_values=_OUTSIDE)
    # Which pixels of a cell border on the neighbour at each offset.
    strips = {
        -1: slice(None, width),
        0: slice(None),
        1: slice(-width, None),
    }
    mask = np.zeros((rows, cell[0], columns, cell[1]), np.bool_)
    for down, right in itertools.product(strips, repeat=2):
        top = 1 + down
        left = 1 + right
        neighbours = padded[top : top + rows, left : left + columns]
        differs = neighbours != regions
        mask[:, strips[down], :, strips[right]] |= differs[:, None, :, None]
    return mask


def outline_colours(count: int) -> npt.NDArray[np.uint8]:
    """Return bright colours ``(count, 3)``, the same in every call.

    Consecutive hues are a golden ratio apart, so that no two are close to each other.
    """
    number = np.arange(count)
    first_hue = np.random.default_rng(_SEED).random()
    hue = (first_hue + number * _GOLDEN_RATIO) % 1
    # HSV at full saturation: each channel is a function of the distance to its own corner.
    corners = np.array([0, 4, 2])
    distance = np.abs((hue[:, None] * 6 + corners) % 6 - 3)
    saturated = np.clip(distance - 1, 0, 1)
    brightness = _BRIGHTNESS[number % 3, None]
    return np.rint(255 * saturated * brightness).astype(np.uint8)
