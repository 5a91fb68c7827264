"""ViTs with joint space-time attention: VideoMAE (arXiv 2203.12602), MAE-ST (2205.09113), ViViT."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers.helpers import to_2tuple
from timm.models.vision_transformer import VisionTransformer

from tome_core.networks.tubelets import TubeletEmbed


class VideoViT(VisionTransformer):  # type: ignore[misc]
    """timm's ViT over the tubelets of a clip: ``(B, C, T*H, W)`` -> ``(B, classes)``.

    Every token attends to all of the clip. Positions are those of timm, one for each tubelet.

    Args:
        frames: frames T of a clip.
        tubelet: frames of a tubelet.
        img_size: height and width of a frame.
        arguments: of timm's ViT.

    Raises:
        ValueError: the frames are no whole number of tubelets, or ``arguments`` ask for clips of
            any size, to which positions cannot be resampled.
    """

    def __init__(
        self,
        *,
        frames: int = 16,
        tubelet: int = 2,
        img_size: int | tuple[int, int] = 224,
        class_token: bool = False,
        global_pool: str = "avg",
        **arguments: Any,
    ) -> None:
        height, width = to_2tuple(img_size)
        super().__init__(
            img_size=(frames * height, width),
            class_token=class_token,
            global_pool=global_pool,
            embed_layer=partial(TubeletEmbed, frames=frames, tubelet=tubelet),
            **arguments,
        )

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Accept the size that the network has, as timm's networks do.

        Raises:
            ValueError: the size is another, for which timm would resample the positions as if the
                frames were one picture.
        """
        sizes = (img_size, self.patch_embed.img_size), (patch_size, self.patch_embed.patch_size)
        for wanted, present in sizes:
            if wanted is not None and to_2tuple(wanted) != present:
                raise ValueError(f"the size cannot change from {present} to {to_2tuple(wanted)}")
