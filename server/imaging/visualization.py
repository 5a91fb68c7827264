"""The picture of merging, as in the paper: every merged region in its mean colour, within an outline of its own."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

LEAST_CELL = 16  # a patch is drawn at least so many pixels wide and high
_SEED = 0
_GOLDEN = (math.sqrt(5) - 1) / 2

Grid = tuple[int, int]  # rows, columns


def draw(
    pixels: npt.NDArray[np.uint8], source: npt.NDArray[np.integer], prefix: int, grid: Grid
) -> Image.Image:
    """What was merged with what, over the picture that the model saw.

    Args:
        pixels: ``uint8 (C, H, W)`` of 1 or 3 channels.
        source: ``(N0,)``, for every input token the position of the token it ended in.
        prefix: how many tokens at the front are no patches.
        grid: of the patches.
    """
    regions = np.unique(source[prefix:], return_inverse=True)[1].reshape(grid)
    colours = mean_colours(pixels, regions)
    cell = cell_size(pixels.shape[-2:], grid)
    fill = colours[regions][:, None, :, None]
    line = outline_colours(len(colours))[regions][:, None, :, None]
    canvas = np.where(outlines(regions, cell)[..., None], line, fill)
    return Image.fromarray(canvas.reshape(grid[0] * cell[0], grid[1] * cell[1], 3))


def png(picture: Image.Image) -> bytes:
    """``picture`` as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def mean_colours(
    pixels: npt.NDArray[np.uint8], regions: npt.NDArray[np.intp]
) -> npt.NDArray[np.uint8]:
    """The mean colour ``(n, 3)`` of the pixels ``(C, H, W)`` of each of n regions, numbered on the grid of patches."""
    rows, columns = (
        np.arange(size) * cells // size
        for size, cells in zip(pixels.shape[1:], regions.shape, strict=True)
    )
    of_pixel = regions[rows[:, None], columns].ravel()
    sums = np.stack([np.bincount(of_pixel, channel.ravel()) for channel in pixels], axis=1)
    means = np.rint(sums / np.bincount(of_pixel)[:, None]).astype(np.uint8)
    return np.broadcast_to(means, (len(means), 3))


def cell_size(size: tuple[int, ...], grid: Grid) -> Grid:
    """Height and width in which a patch is drawn: its own, times a whole number where it is too small to be seen."""
    patch = [max(1, round(side / cells)) for side, cells in zip(size, grid, strict=True)]
    scale = math.ceil(LEAST_CELL / min(patch))
    return patch[0] * scale, patch[1] * scale


def outlines(regions: npt.NDArray[np.intp], cell: Grid) -> npt.NDArray[np.bool_]:
    """Where a region's outline is drawn, just inside of it: bool ``(rows, cell height, columns, cell width)``."""
    rows, columns = regions.shape
    width = max(1, min(cell) // LEAST_CELL)
    around = np.pad(regions, 1, constant_values=-1)
    strips = {-1: slice(None, width), 0: slice(None), 1: slice(-width, None)}
    mask = np.zeros((rows, cell[0], columns, cell[1]), np.bool_)
    for down, right in itertools.product(strips, repeat=2):
        neighbours = around[1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
        mask[:, strips[down], :, strips[right]] |= (neighbours != regions)[:, None, :, None]
    return mask


def outline_colours(count: int) -> npt.NDArray[np.uint8]:
    """Bright colours ``(count, 3)``, always the same ones: hues a golden section apart, so that no two come close."""
    number = np.arange(count)
    hue = (np.random.default_rng(_SEED).random() + number * _GOLDEN) % 1
    # Three corners of the colour cube meet every hue (HSV at full saturation).
    wheel = np.clip(np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return np.rint(255 * wheel * np.array([1, 0.85, 0.7])[number % 3, None]).astype(np.uint8)
