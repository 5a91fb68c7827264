"""A patch embedding of video: its patches, called tubelets, extend over several frames."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tome_core.networks.patch_convolutions import ConvolutionPatchEmbed, Pair


class TubeletProjection(nn.Conv3d):
    """A ``Conv3d (D, C, tubelet, height, width)`` of tubelets that have been cut out.

    Where its stride equals its kernel, a convolution is a matrix product, which is faster.
    """

    def forward(self, tubelets: Tensor) -> Tensor:
        """Project what `cut_tubelets` returns, to ``(B, N, D)``."""
        pixels = tubelets.flatten(4).flatten(1, 3)  # (B, N, C * tubelet * height * width)
        return F.linear(pixels, self.weight.flatten(1), self.bias)


class TubeletEmbed(ConvolutionPatchEmbed):
    """timm's ``PatchEmbed`` for clips: ``(B, C, T*H, W)`` -> ``(B, N, D)``.

    The frames of a clip lie below each other in one tall picture, so that whatever carries images
    carries clips. ``proj`` has the weights of a ``Conv3d (D, C, tubelet, height, width)``, as video
    models have them. Tokens are ordered by time, then by row and column.

    Args:
        img_size: height and width of the tall picture, ``(T*H, W)``.
        patch_size: height and width.
        in_chans: channels of a frame.
        embed_dim: width D of a token.
        frames: frames T of a clip.
        tubelet: frames of a tubelet.
        options: of timm's ``PatchEmbed``.

    Raises:
        ValueError: the frames are no whole number of tubelets, or a frame of patches; or
            ``options`` ask for clips of any size, or for another order of tokens.
    """

    proj: TubeletProjection

    def __init__(
        self,
        img_size: int | Pair,
        patch_size: int | Pair = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        frames: int,
        tubelet: int,
        **options: Any,
    ) -> None:
        if frames < 1 or tubelet < 1:
            raise ValueError(f"{frames} frames in tubelets of {tubelet} are no clip")
        super().__init__(None, patch_size, in_chans, embed_dim, **options)
        if self.dynamic_img_pad or not self.strict_img_size or not self.flatten:
            raise ValueError("tubelets are cut from clips of one size, into one sequence")
        self.frames = frames
        self.tubelet = tubelet
        self.img_size, self.grid_size, self.num_patches = self._init_img_size(img_size)
        kernel = (tubelet, *self.patch_size)
        self.proj = self._like_projection(TubeletProjection, kernel, kernel)

    def dynamic_feat_size(self, img_size: Pair) -> Pair:
        """Return rows and columns of tubelets of a tall picture of ``img_size (T*H, W)``.

        Raises:
            ValueError: the tubelets do not fill it.
        """
        tall, width = img_size
        height = tall // self.frames
        rows, columns = self.patch_size
        uneven = tall % self.frames or self.frames % self.tubelet or height % rows
        if uneven or width % columns:
            raise ValueError(
                f"{self.frames} frames of {height} x {width} pixels are no whole number of tubelets"
                f" of {self.tubelet} frames of {rows} x {columns}"
            )
        return self.frames // self.tubelet * (height // rows), width // columns

    def forward(self, clips: Tensor) -> Tensor:
        """``(B, C, T*H, W)`` -> ``(B, N, D)``.

        Raises:
            ValueError: ``clips`` have another size than the model.
        """
        size = tuple(clips.shape[2:])
        if size != self.img_size:
            raise ValueError(f"clips of {self.img_size} expected, (T*H, W), got {size}")
        tubelets = cut_tubelets(clips, self.frames, self.tubelet, self.patch_size)
        tokens = self.proj(tubelets)
        return self.norm(tokens)


def cut_tubelets(clips: Tensor, frames: int, tubelet: int, patch_size: Pair) -> Tensor:
    """Cut ``clips (B, C, T*H, W)`` of T ``frames`` into tubelets.

    Args:
        tubelet: frames of a tubelet.
        patch_size: its height and width.

    Returns:
        ``(B, times, rows, columns, C, tubelet, height, width)``, a view.
    """
    height, width = patch_size
    in_rows = clips.unflatten(2, (frames // tubelet, tubelet, -1, height))
    parts = in_rows.unflatten(6, (-1, width))
    # (B, C, times, tubelet, rows, height, columns, width)
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7)
