"""Images as a model reads them: normalised floats, or raw pixels with their normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pixels:
    """Raw pixels, and their normalisation as one multiply-add: ``values * scale + shift``.

    Attributes:
        values: uint8 ``(B, C, H, W)``.
        scale, shift: float32 ``(C,)``, on the same device.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a tensor has another shape, or the tensors are on several devices.
    """

    values: Tensor
    scale: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        tensors = (self.values, self.scale, self.shift)
        dtypes = tuple(tensor.dtype for tensor in tensors)
        if dtypes != (torch.uint8, torch.float32, torch.float32):
            raise TypeError(f"pixels must be uint8, their scale and shift float32, got {dtypes}")
        shapes = tuple(tensor.shape for tensor in tensors)
        channels = shapes[0][1:2]
        if len(shapes[0]) != 4 or not channels == shapes[1] == shapes[2]:
            message = "pixels must be (B, C, H, W), their scale and shift (C,)"
            raise ValueError(f"{message}, got {shapes}")
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
        """Return the normalised images, float32 ``(B, C, H, W)``."""
        scale = self.scale.view(-1, 1, 1)  # (C, 1, 1)
        shift = self.shift.view(-1, 1, 1)  # (C, 1, 1)
        if self.values.device.type == "cpu":
            # The same numbers in place: mixed dtypes and more fresh memory take several times as
            # long as the arithmetic.
            return self.values.float().mul_(scale).add_(shift)
        return self.values * scale + shift


Images = Tensor | Pixels


def normalised(images: Images) -> Tensor:
    """Return ``images`` as floats ``(B, C, H, W)``; a tensor is normalised already."""
    if isinstance(images, Pixels):
        return images.normalised()
    return images


def check_images(images: Images) -> None:
    """Refuse an empty batch, and a tensor that cannot be normalised images.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: the batch is empty.
    """
    if isinstance(images, Tensor) and not images.is_floating_point():
        raise TypeError(f"images must be floating point and normalised, got {images.dtype}")
    if len(images) == 0:
        raise ValueError("the batch is empty")
