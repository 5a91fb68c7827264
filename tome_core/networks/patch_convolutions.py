"""Patch embeddings with another convolution than timm's, whose patches keep their size."""

from __future__ import annotations

from typing import Any, TypeVar

from timm.layers import PatchEmbed
from timm.layers.helpers import to_2tuple
from torch import nn

Pair = tuple[int, int]
Convolution = TypeVar("Convolution", bound=nn.Module)


class ConvolutionPatchEmbed(PatchEmbed):  # type: ignore[misc]
    """timm's ``PatchEmbed``, whose grid follows from `dynamic_feat_size`.

    A subclass creates it without ``img_size``; sets what `dynamic_feat_size` reads; then sets the
    size by `_init_img_size`, and ``proj`` by `_like_projection`.
    """

    def _init_img_size(self, img_size: int | Pair | None) -> tuple[Any, Any, Any]:
        """Return height and width, rows and columns of patches, and the number of patches."""
        if img_size is None:
            return None, None, None
        size: Pair = to_2tuple(img_size)
        grid = self.dynamic_feat_size(size)
        return size, grid, grid[0] * grid[1]

    def _like_projection(
        self,
        kind: type[Convolution],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> Convolution:
        """Return a convolution with the channels, bias, device and dtype of ``proj``."""
        return kind(
            self.proj.in_channels,
            self.proj.out_channels,
            kernel_size=kernel,
            stride=stride,
            bias=self.proj.bias is not None,
            device=self.proj.weight.device,
            dtype=self.proj.weight.dtype,
        )

    def set_input_size(
        self,
        img_size: int | Pair | None = None,
        patch_size: int | Pair | None = None,
    ) -> None:
        """Change the size of the images.

        Raises:
            ValueError: the patches would change, too, which this class does not resize; or they do
                not fit the images.
        """
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise ValueError(f"the patches of {type(self).__name__} cannot be resized")
        super().set_input_size(img_size)
