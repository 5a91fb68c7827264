"""The transform from an encoded image to a model's input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Transform:
    """The transform from an encoded image to a model's input, as in timm's ``resolve_data_config``.

    Attributes:
        size: ``(C, H, W)`` of the input.
        interpolation: Pillow's name of the filter in lower case, such as ``bicubic``.
        crop_pct: share of the resized image that the crop keeps.
        crop_mode: ``center``, ``squash`` or ``border``.
        fill: colour of the border that ``border`` adds, the rounded mean: one number from 0 to 255
            per channel.
    """

    size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    fill: tuple[int, ...] = (0, 0, 0)
