"""V-JEPA 2 (arXiv 2506.09985): a ViT of video with rotary positions in time and space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import LayerNorm
from timm.layers.helpers import to_2tuple
from timm.models.eva import Eva
from torch import Tensor, nn

from tome_core.networks.attentive_pooler import AttentivePooler
from tome_core.networks.tubelet_rotary import rotary_table
from tome_core.networks.tubelets import TubeletEmbed


class VJepa2(Eva):  # type: ignore[misc]
    """timm's ``Eva`` over the tubelets of a clip: ``(B, C, T*H, W)`` -> ``(B, classes)``.

    It has no prefix token and no positions but rotary ones. A model with classes pools by an
    `AttentivePooler` (``global_pool="map"``), one without by the mean of its tokens (``"avg"``).

    Args:
        frames: frames T of a clip.
        tubelet: frames of a tubelet.
        img_size: height and width of a frame.
        patch_size: height and width of a tubelet.
        in_chans: channels of a frame.
        num_classes: 0 for a model without a classifier.
        embed_dim: width D of a token.
        num_heads: of every attention.
        norm_layer, act_layer: of every norm and MLP.
        global_pool: ``"map"`` or ``"avg"``; default: see above.
        pooler_depth: number of self-attention blocks of the pooler.
        pooler_mlp_ratio: see `AttentivePooler`.
        arguments: of timm's ``Eva``.
    """

    def __init__(
        self,
        *,
        frames: int = 64,
        tubelet: int = 2,
        img_size: int | tuple[int, int] = 256,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 1024,
        num_heads: int = 16,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        global_pool: str | None = None,
        pooler_depth: int = 3,
        pooler_mlp_ratio: float = 4.0,
        **arguments: Any,
    ) -> None:
        height, width = to_2tuple(img_size)
        tall_size = (frames * height, width)
        super().__init__(
            img_size=tall_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            num_heads=num_heads,
            norm_layer=norm_layer,
            class_token=False,
            global_pool="avg",
            use_fc_norm=False,
            use_abs_pos_emb=False,
            attn_type="rope",
            **arguments,
        )
        self.patch_embed = TubeletEmbed(
            tall_size, patch_size, in_chans, embed_dim, frames=frames, tubelet=tubelet
        )
        for block in self.blocks:
            block.mlp.act = act_layer()
        self.global_pool = global_pool or ("map" if num_classes else "avg")
        if self.global_pool == "map":
            self.attn_pool = AttentivePooler(
                embed_dim, num_heads, pooler_depth, pooler_mlp_ratio, norm_layer, act_layer
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Times, rows and columns of tubelets."""
        times = self.patch_embed.frames // self.patch_embed.tubelet
        all_rows, columns = self.patch_embed.grid_size
        return times, all_rows // times, columns

    def _pos_embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens ``(B, N, D)`` as they are, and their table of angles for timm."""
        head_dim = self.blocks[0].attn.head_dim
        table = rotary_table(self.grid, head_dim, device=x.device, dtype=x.dtype)
        return x, table
