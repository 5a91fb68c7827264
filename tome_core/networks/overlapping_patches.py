"""A patch embedding whose patches overlap: its stride is smaller than a patch."""

from __future__ import annotations

from typing import Any

from timm.layers.helpers import to_2tuple
from torch import nn

from tome_core.networks.patch_convolutions import ConvolutionPatchEmbed, Pair


class OverlapPatchEmbed(ConvolutionPatchEmbed):
    """timm's ``PatchEmbed`` with a stride of its own: ``(B, C, H, W)`` -> ``(B, N, D)``.

    Pixels at the right and at the bottom that do not fill a patch are dropped.

    Args:
        img_size: height and width.
        patch_size: height and width.
        in_chans: channels of an image.
        embed_dim: width D of a token.
        stride: rows and columns from one patch to the next.
        options: of timm's ``PatchEmbed``.
    """

    proj: nn.Conv2d

    def __init__(
        self,
        img_size: int | Pair = 224,
        patch_size: int | Pair = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        stride: int | Pair = 10,
        **options: Any,
    ) -> None:
        super().__init__(None, patch_size, in_chans, embed_dim, **options)
        self.stride: Pair = to_2tuple(stride)
        self.img_size, self.grid_size, self.num_patches = self._init_img_size(img_size)
        self.proj = self._like_projection(nn.Conv2d, self.patch_size, self.stride)

    def feat_ratio(self, as_scalar: bool = True) -> Pair | int:
        """Return how many pixels lie between patches: the larger number, or both."""
        return max(self.stride) if as_scalar else self.stride

    def dynamic_feat_size(self, img_size: Pair) -> Pair:
        """Return the rows and columns of patches of an image of ``img_size (height, width)``."""
        height, width = img_size
        rows = (height - self.patch_size[0]) // self.stride[0] + 1
        columns = (width - self.patch_size[1]) // self.stride[1] + 1
        return rows, columns
