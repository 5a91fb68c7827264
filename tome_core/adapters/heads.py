"""What follows the last block, for models that pool and classify as timm's VisionTransformer does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tome_core.adapters.checks import (
    TOKENWISE_NORMS,
    attention_pool_macs,
    linear_macs,
    require_attention_pool,
    require_type,
)
from tome_core.cost import BlockCost, Cost
from tome_core.errors import UnsupportedModelError
from tome_core.pooling import POOLS, attention_pool, pool


class PooledHead:
    """The end of an adapter (see `tome_core.model.Adapter`): final norm, pool, norm after pooling, classifier.

    Args:
        blocks: cost of each block.
        pool_skip: how many tokens at the front are not pooled; default the prefix tokens.
    """

    def __init__(
        self, network: Any, blocks: Sequence[BlockCost], pool_skip: int | None = None
    ) -> None:
        self._attn_pool: Any = getattr(network, "attn_pool", None)
        if self._attn_pool is not None:
            require_attention_pool(self._attn_pool)
        elif network.global_pool not in POOLS:
            raise UnsupportedModelError(
                f"global_pool={network.global_pool!r} is not supported; supported:"
                f" {', '.join(POOLS)}, map"
            )
        require_type(network.norm, TOKENWISE_NORMS, "norm")
        self.network: Any = network
        self.prefix: int = network.num_prefix_tokens
        self._skip = self.prefix if pool_skip is None else pool_skip
        fixed = network.patch_embed.num_patches * linear_macs(network.patch_embed) + linear_macs(
            network.head
        )
        per_token = 0
        if self._attn_pool is not None:
            of_pool, per_token = attention_pool_macs(self._attn_pool)
            fixed += of_pool + (self.prefix - self._skip) * per_token
        self.cost = Cost(fixed, tuple(blocks), self.prefix, per_token)

    @property
    def leading(self) -> int | None:
        """So many tokens at the front are all that `pool` reads; None where it may read any."""
        reads_first = (
            self._attn_pool is None and self.network.global_pool == "token" and self.prefix > 0
        )
        return 1 if reads_first else None

    def norm(self, tokens: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.network.norm(tokens)

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """``(B, N, D)`` -> ``(B, D)``."""
        if self._attn_pool is not None:
            return attention_pool(
                self._attn_pool,
                tokens[:, self._skip :],
                None if sizes is None else sizes[:, self._skip :],
            )
        return pool(self.network.global_pool, tokens, sizes, self._skip)

    def features(self, pooled: Tensor) -> Tensor:
        """``(B, D)``, as ``forward_head(pre_logits=True)``."""
        return self.network.head_drop(self.network.fc_norm(pooled))

    def logits(self, pooled: Tensor) -> Tensor:
        """``(B, classes)``, as ``forward_head``."""
        return self.network.head(self.features(pooled))
