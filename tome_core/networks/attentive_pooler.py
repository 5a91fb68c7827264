"""The attentive pooler: self-attention over all tokens, then one query that attends to them."""

from __future__ import annotations

from collections.abc import Callable

from timm.layers import AttentionPoolLatent, LayerNorm, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class AttentivePooler(nn.Module):
    """The pooler of V-JEPA 2's classifiers (arXiv 2506.09985): ``(B, N, D)`` -> ``(B, D)``.

    The query attends without a projection of its result, to which it is added.

    Args:
        dim: width D of a token.
        num_heads: of every attention.
        depth: number of self-attention blocks.
        mlp_ratio: width of the first layer of each MLP, as a multiple of D.
        norm_layer: of every norm.
        act_layer: of every MLP.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        depth: int,
        mlp_ratio: float = 4.0,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        act_layer: Callable[..., nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for _ in range(depth):
            block = Block(
                dim,
                num_heads,
                mlp_ratio,
                qkv_bias=True,
                act_layer=act_layer,
                norm_layer=norm_layer,
            )
            self.blocks.append(block)
        self.norm1 = norm_layer(dim)
        self.cross_attn = AttentionPoolLatent(dim, out_features=0, num_heads=num_heads)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer)

    def forward(self, tokens: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Pool ``(B, N, D)`` into ``(B, D)``.

        Args:
            tokens: ``(B, N, D)``.
            attn_mask: added to the logits of every attention, ``(B, 1, 1, N)``.
        """
        for block in self.blocks:
            tokens = block(tokens, attn_mask=attn_mask)
        attended = self.cross_attn(self.norm1(tokens), attn_mask=attn_mask)  # (B, D)
        query = self.cross_attn.latent[:, 0]  # (1, D)
        pooled = query + attended
        return pooled + self.mlp(self.norm2(pooled))
