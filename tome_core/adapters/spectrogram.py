"""The Audio Spectrogram Transformer: its head reads the mean of two tokens, or of the patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tome_core.adapters.checks import require_known, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.adapters.vit import ATTRIBUTES, CHILDREN, adapt_blocks, embed
from tome_core.networks.spectrogram_vit import SpectrogramViT


class SpectrogramAdapter(PooledHead):
    """The adapter of a `SpectrogramViT` (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (SpectrogramViT,), "the model")
        require_known(network, CHILDREN, ATTRIBUTES, "the model")
        self.blocks = adapt_blocks(network.blocks)
        super().__init__(network, [block.cost for block in self.blocks])

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, positions included; attention reads none."""
        return embed(self.network, images), None

    @property
    def leading(self) -> int | None:
        """The prefix tokens; None if the head reads the mean of the patches."""
        return self.prefix if self.network.global_pool == "token" else None

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """``(B, N, D)`` -> ``(B, D)``; prefix tokens never merge, so that they have no sizes."""
        if self.network.global_pool == "token":
            return tokens[:, : self.prefix].mean(dim=1)
        return super().pool(tokens, sizes)
