"""Norm, pool and classifier after the last block, for models that use those of timm's ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tome_core.adapters.attention_pools import (
    NO_POOL,
    attention_pool_cost,
    require_attention_pool,
)
from tome_core.adapters.checks import TOKENWISE_NORMS, linear_macs, require_type
from tome_core.cost import BlockCost, Cost
from tome_core.errors import UnsupportedModelError
from tome_core.pooling import POOLS, attention_pool, pool


class PooledHead:
    """The last part of an adapter: final norm, pool, norm after pooling, classifier.

    See `tome_core.model.Adapter`.

    Args:
        network: the model.
        blocks: cost of each block.
        pool_skip: number of tokens at the front that are not pooled; default the prefix tokens.
    """

    def __init__(
        self,
        network: Any,
        blocks: Sequence[BlockCost],
        pool_skip: int | None = None,
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
        self.cost = self._model_cost(blocks)

    def _model_cost(self, blocks: Sequence[BlockCost]) -> Cost:
        patch_embed = self.network.patch_embed
        fixed = patch_embed.num_patches * linear_macs(patch_embed)
        fixed += linear_macs(self.network.head)
        pool_cost = NO_POOL
        if self._attn_pool is not None:
            pool_cost = attention_pool_cost(self._attn_pool)
        pooled_prefix_tokens = self.prefix - self._skip
        fixed += pool_cost.fixed + pooled_prefix_tokens * pool_cost.per_token
        return Cost(
            fixed=fixed,
            blocks=tuple(blocks),
            prefix=self.prefix,
            pool=pool_cost.per_token,
            pool_blocks=pool_cost.blocks,
        )

    @property
    def leading(self) -> int | None:
        """The number of tokens at the front that `pool` reads; None if it may read any token."""
        # Read in every call, since timm's reset_classifier may change the pool.
        pools_first_token = self._attn_pool is None and self.network.global_pool == "token"
        if pools_first_token and self.prefix > 0:
            return 1
        return None

    def norm(self, tokens: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.network.norm(tokens)

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """``(B, N, D)`` -> ``(B, D)``."""
        if self._attn_pool is None:
            return pool(self.network.global_pool, tokens, sizes, self._skip)
        tokens = tokens[:, self._skip :]
        if sizes is not None:
            sizes = sizes[:, self._skip :]
        return attention_pool(self._attn_pool, tokens, sizes)

    def features(self, pooled: Tensor) -> Tensor:
        """Return ``(B, D)``, as ``forward_head(pre_logits=True)``."""
        normed = self.network.fc_norm(pooled)
        return self.network.head_drop(normed)

    def logits(self, pooled: Tensor) -> Tensor:
        """Return ``(B, classes)``, as ``forward_head``."""
        features = self.features(pooled)
        return self.network.head(features)
