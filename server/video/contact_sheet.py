"""The contact sheet of a clip: its frames side by side, with the regions merged across time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.imaging.visualization import Grid, cell_size, mean_colours, number_regions, paint
from server.media.transforms import VideoTransform

_COLUMNS = 4
_GAP = 4  # pixels between two frames, black
_MIN_FRAME = 112  # smallest side, in pixels, at which a frame is drawn


def draw_clip(
    pixels: npt.NDArray[np.uint8],
    source: npt.NDArray[np.integer],
    prefix: int,
    grid: Grid,
    transform: VideoTransform,
) -> Image.Image:
    """Draw which tubelets of a clip were merged.

    There is one frame for each step of tubelets in time, in rows of four. A region has one colour
    in all frames: the mean over all of its tubelets.

    Args:
        pixels: the clip, ``uint8 (C, T*H, W)`` of 1 or 3 channels.
        source: ``(N0,)``, for every input token the position of the token it ended in.
        prefix: number of prefix tokens, which are not tubelets.
        grid: rows and columns of tubelets, the steps below each other: ``(T/tubelet * H/p, W/p)``.
        transform: of the model.
    """
    steps = transform.frames // transform.tubelet
    rows, columns = grid[0] // steps, grid[1]
    regions = number_regions(source, prefix, (steps, rows, columns))
    in_each_frame = regions.repeat(transform.tubelet, axis=0)
    colours = mean_colours(pixels, in_each_frame.reshape(-1, columns))
    cell = _cell_size(transform, (rows, columns))
    return _lay_out([paint(step, colours, cell) for step in regions])


def _cell_size(transform: VideoTransform, grid: Grid) -> Grid:
    """Return the height and width at which a tubelet of the ``grid`` of one frame is drawn."""
    height, width = cell_size((transform.height, transform.width), grid)
    scale = math.ceil(_MIN_FRAME / min(grid[0] * height, grid[1] * width))
    return height * scale, width * scale


def _lay_out(frames: list[Image.Image]) -> Image.Image:
    """Return frames of one size in rows, in order of time, with gaps."""
    columns = min(_COLUMNS, len(frames))
    rows = math.ceil(len(frames) / columns)
    width, height = frames[0].size
    across = width + _GAP
    down = height + _GAP
    sheet = Image.new("RGB", (columns * across - _GAP, rows * down - _GAP))
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        sheet.paste(frame, (column * across, row * down))
    return sheet
