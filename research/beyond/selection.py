"""Which images of a data set are measured, and which others schedules are calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from server.commands.datasets import LabelledData
from server.errors import ConfigError

_SEED = 0


def select(data: LabelledData, skip: int, images: int, calibration: int) -> LabelledData:
    """Return the images to measure, then those for calibration, which are none of them.

    The files of a folder, which are sorted by class, are shuffled first, always in the same way.

    Args:
        skip: images in front of those that are measured.
        images: to measure.
        calibration: the first so many of all others.

    Raises:
        ConfigError: there are too few.
    """
    order = np.arange(len(data))
    if not isinstance(data.sources, np.ndarray):
        np.random.default_rng(_SEED).shuffle(order)
    measured = order[skip : skip + images]
    others = np.concatenate([order[:skip], order[skip + images :]])
    if len(measured) < images or len(others) < calibration:
        raise ConfigError(
            f"{data.name} has {len(data):,} images; skipping {skip:,}, measuring {images:,} and"
            f" calibrating on {calibration:,} others needs more: lower --skip, --images or"
            " --calibration"
        )
    chosen = [int(index) for index in (*measured, *others[:calibration])]
    sources: Sequence[Path] | np.ndarray
    if isinstance(data.sources, np.ndarray):
        sources = data.sources[chosen]
    else:
        sources = [data.sources[index] for index in chosen]
    return replace(data, sources=sources, labels=[data.labels[index] for index in chosen])
