"""Filters that respond to motion, for the start of training.

They are the detectors of the motion energy model (Adelson and Bergen, Journal of the Optical
Society of America A 2(2), 1985): waves that drift under a window, in pairs a quarter of a period
apart. How a garment moves is in products of pixels of two frames, for which the gradient of random
filters is next to nothing. Squares of what these filters find have such products in them.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

DIRECTIONS = 8  # from right on, counter-clockwise
SPEEDS = (0.8, 1.6)  # pixels a frame
PERIODS = (5.0, 9.0)  # pixels
PHASES = (0.0, math.pi / 2)
WINDOW = 3.0  # standard deviation in pixels


def motion_detectors(frames: int, side: int) -> Tensor:
    """Return drifting waves ``(64, frames, side, side)``, each of norm 1, with no mean in a frame.

    Directions vary slowest; then speeds, periods and phases.
    """
    time = _centred(frames)[:, None, None]
    down = _centred(side)[:, None]
    right = _centred(side)
    window = torch.exp(-(right**2 + down**2) / (2 * WINDOW**2))
    detectors = []
    for direction, speed, period, phase in product(range(DIRECTIONS), SPEEDS, PERIODS, PHASES):
        angle = 2 * math.pi / DIRECTIONS * direction
        along = right * math.cos(angle) - down * math.sin(angle)
        wave = window * torch.cos(2 * math.pi / period * (along - speed * time) + phase)
        wave = wave - wave.mean(dim=(1, 2), keepdim=True)
        detectors.append(wave / wave.norm())
    return torch.stack(detectors)


def _centred(count: int) -> Tensor:
    """Return ``count`` places at distance 1 around 0."""
    return torch.arange(count) - (count - 1) / 2
