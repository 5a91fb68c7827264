"""How elementwise kernels are divided into programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchConfig:
    """The elements of one program, and its warps."""

    elements: int
    warps: int


DEFAULT_CONFIG = LaunchConfig(elements=4096, warps=8)
