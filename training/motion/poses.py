"""Where a garment is in every frame, and why no single frame tells how it moves.

A pose is a place, an angle and a size. In the first frame it is uniform, whatever the class is, and
all of its coordinates are circles: a garment that leaves the frame on one side comes back on the
other, and one that has grown to the largest size starts again at the smallest. A motion turns the
circles at a constant speed, and what is uniform on a circle stays uniform when the circle turns. So
the pose has the same distribution in every frame of every class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.draws import Draw
from training.motion.motions import MOTIONS
from training.motion.network import FRAMES, SIZE

SIZES = (18.0, 44.0)  # pixels; the diagonal of the largest garment is shorter than a frame
LOG_SIZES = math.log(SIZES[1] / SIZES[0])  # length of the circle of sizes
# From the first frame to the last: pixels, radians, and the logarithm of the size.
TRAVEL = (10.0, 32.0)
TURN = (math.radians(45), math.radians(150))
GROWTH = (0.35, 0.7)


@dataclass(frozen=True)
class Poses:
    """Poses of a batch of garments, ``(B, T)`` each.

    Attributes:
        x, y: centre in pixels, from the left and from the top.
        angle: clockwise, in radians.
        size: height and width of the garment's picture in pixels.
    """

    x: Tensor
    y: Tensor
    angle: Tensor
    size: Tensor


def resting(draw: Draw) -> Poses:
    """Return uniform poses of one frame, ``(B, 1)``.

    Where the draw's difficulty is less than 1, they are closer to one pose: upright, in the middle,
    and of middle size.
    """
    spread = draw.difficulty
    middle_size = math.sqrt(SIZES[0] * SIZES[1])
    return Poses(
        x=SIZE / 2 + spread * draw.uniform(-SIZE / 2, SIZE / 2, 1),
        y=SIZE / 2 + spread * draw.uniform(-SIZE / 2, SIZE / 2, 1),
        angle=spread * draw.uniform(-math.pi, math.pi, 1),
        size=middle_size * draw.ratio(SIZES, 1).div(middle_size).pow(spread),
    )


def moving(labels: Tensor, draw: Draw) -> Poses:
    """Return poses ``(B, FRAMES)`` that move as ``labels (B,)`` say.

    The same random numbers are drawn for every class, so that clips of one seed and of different
    classes have the same first frame.
    """
    first = resting(draw)
    speed = draw.uniform(0, 1, 1)  # from the slowest to the fastest of its class
    travel, turn, growth = (low + (high - low) * speed for low, high in (TRAVEL, TURN, GROWTH))
    table = torch.tensor(
        [[m.right, m.down, m.turn, m.growth] for m in MOTIONS], device=labels.device
    )
    right, down, clockwise, bigger = table[labels].split(1, dim=1)
    time = torch.arange(FRAMES, device=labels.device) / (FRAMES - 1)
    log_size = (first.size / SIZES[0]).log() + bigger * growth * time
    return Poses(
        x=(first.x + right * travel * time) % SIZE,
        y=(first.y + down * travel * time) % SIZE,
        angle=first.angle + clockwise * turn * time,
        size=SIZES[0] * (log_size % LOG_SIZES).exp(),
    )
