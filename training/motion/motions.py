"""The twelve classes: how a garment moves."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Motion:
    """One class of motion.

    Attributes:
        right, down: direction on the screen, of length 1, or 0 without translation.
        turn: 1 clockwise, -1 counter-clockwise.
        growth: 1 for zooming in, -1 for zooming out.
    """

    name: str
    right: float = 0.0
    down: float = 0.0
    turn: float = 0.0
    growth: float = 0.0


def _towards(name: str, degrees: float) -> Motion:
    """Return a translation; 0 degrees are to the right, 90 are up."""
    angle = math.radians(degrees)
    return Motion(name, right=math.cos(angle), down=-math.sin(angle))


MOTIONS = (
    _towards("right", 0),
    _towards("up-right", 45),
    _towards("up", 90),
    _towards("up-left", 135),
    _towards("left", 180),
    _towards("down-left", 225),
    _towards("down", 270),
    _towards("down-right", 315),
    Motion("rotate-clockwise", turn=1),
    Motion("rotate-counter-clockwise", turn=-1),
    Motion("zoom-in", growth=1),
    Motion("zoom-out", growth=-1),
)
NAMES = tuple(motion.name for motion in MOTIONS)
