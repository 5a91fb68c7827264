"""A ViT whose classifier reads the class token and the mean of the patches, side by side.

Its authors evaluate DINOv2 so (``torch.hub``'s ``*_lc`` models of one layer), and transformers'
``Dinov2ForImageClassification`` does. timm has no such head.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tome_core.adapters.checks import require_known, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.adapters.vit import ATTRIBUTES, CHILDREN, adapt_blocks, embed
from tome_core.pooling import pool


class ClassAndMeanViT(VisionTransformer):  # type: ignore[misc]
    """timm's ViT with a classifier ``(classes, 2 * D)``. Its arguments are those of timm's.

    Tokens are pooled after the final norm.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, global_pool="token")
        if self.num_classes:
            self.head = nn.Linear(2 * self.embed_dim, self.num_classes)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, N, D)`` -> ``(B, classes)``, or ``(B, 2 * D)`` with ``pre_logits``."""
        mean = x[:, self.num_prefix_tokens :].mean(dim=1)
        pooled = self.head_drop(torch.cat([x[:, 0], mean], dim=1))
        return pooled if pre_logits else self.head(pooled)


class ClassAndMeanAdapter(PooledHead):
    """The adapter of a `ClassAndMeanViT` (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (ClassAndMeanViT,), "the model")
        require_known(network, CHILDREN, ATTRIBUTES, "the model")
        self.blocks = adapt_blocks(network.blocks)
        super().__init__(network, [block.cost for block in self.blocks])

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, positions included; attention reads none."""
        return embed(self.network, images), None

    @property
    def leading(self) -> None:
        """The head reads all tokens."""
        return None

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """``(B, N, D)`` -> ``(B, 2 * D)``; the mean counts a merged token by its size."""
        mean = pool("avg", tokens, sizes, self.prefix)
        return torch.cat([tokens[:, 0], mean], dim=1)
