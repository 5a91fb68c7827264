"""What a model reads: normalised images, or pixels as they come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixels as they come, and their normalisation as one multiply-add, ``values * scale + shift``.

    Attributes:
        values: uint8 ``(B, C, H, W)``.
        scale, shift: float32 ``(C,)``, on the same device.

    Raises:
        TypeError: they are of another dtype.
        ValueError: they are of another shape, or lie on several devices.
    """

    values: Tensor
    scale: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        dtypes = self.values.dtype, self.scale.dtype, self.shift.dtype
        if dtypes != (torch.uint8, torch.float32, torch.float32):
            raise TypeError(f"pixels must be uint8, their scale and shift float32, got {dtypes}")
        shapes = self.values.shape, self.scale.shape, self.shift.shape
        if len(shapes[0]) != 4 or not shapes[0][1:2] == shapes[1] == shapes[2]:
            raise ValueError(
                f"pixels must be (B, C, H, W), their scale and shift (C,), got {shapes}"
            )
        if not self.values.device == self.scale.device == self.shift.device:
            raise ValueError("pixels, their scale and shift must be on one device")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, images: slice) -> Pixels:
        return Pixels(self.values[images], self.scale, self.shift)

    @property
    def shape(self) -> torch.Size:
        """``(B, C, H, W)``."""
        return self.values.shape

    def normalised(self) -> Tensor:
        """Float32 ``(B, C, H, W)``."""
        return self.values * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)


Images = Tensor | Pixels


def normalised(images: Images) -> Tensor:
    """``images`` as floats ``(B, C, H, W)``: themselves, if they are normalised already."""
    return images.normalised() if isinstance(images, Pixels) else images
