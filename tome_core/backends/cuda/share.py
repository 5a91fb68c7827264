"""How a kernel that works number by number is cut into programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Numbers to a program of so many warps."""

    numbers: int
    warps: int


SHARE = Share(numbers=4096, warps=8)
