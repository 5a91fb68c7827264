"""Pools that attend to tokens of any order: what they may consist of, and what they cost."""

from __future__ import annotations

from typing import Any, NamedTuple

from timm.layers import AttentionPoolLatent, Mlp
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from tome_core.adapters.attentions import SelfAttention
from tome_core.adapters.blocks import PreNormBlock
from tome_core.adapters.checks import (
    TOKENWISE_NORMS,
    linear_macs,
    require_known,
    require_no_hooks,
    require_type,
)
from tome_core.cost import BlockCost
from tome_core.errors import UnsupportedModelError
from tome_core.networks.attentive_pooler import AttentivePooler


class PoolCost(NamedTuple):
    """MACs of a pool: the fixed part, the part per token, and its blocks (see `Cost`)."""

    fixed: int = 0
    per_token: int = 0
    blocks: tuple[BlockCost, ...] = ()


NO_POOL = PoolCost()


def require_attention_pool(module: Any) -> None:
    """Raise `UnsupportedModelError` unless ``module`` pools tokens of any order by attention."""
    require_type(module, (AttentionPoolLatent, AttentivePooler), "attn_pool")
    if type(module) is AttentivePooler:
        _require_attentive_pooler(module)
    else:
        _require_latent_pool(module, "attn_pool")


def attention_pool_cost(module: Any) -> PoolCost:
    """Return the cost of a pool that `require_attention_pool` accepts."""
    if type(module) is not AttentivePooler:
        return _latent_pool_cost(module)
    of_query = _latent_pool_cost(module.cross_attn)
    return PoolCost(
        fixed=of_query.fixed + linear_macs(module.mlp),
        per_token=of_query.per_token,
        blocks=tuple(block.cost for block in _adapt_blocks(module.blocks)),
    )


def _require_attentive_pooler(module: AttentivePooler) -> None:
    children = {"blocks", "norm1", "cross_attn", "norm2", "mlp"}
    require_known(module, children, (), "attn_pool")
    require_type(module.blocks, (nn.Sequential,), "attn_pool.blocks")
    require_no_hooks(module.blocks, "attn_pool.blocks")
    _adapt_blocks(module.blocks)
    require_type(module.cross_attn, (AttentionPoolLatent,), "attn_pool.cross_attn")
    _require_latent_pool(module.cross_attn, "attn_pool.cross_attn")
    for name in ("norm1", "norm2"):
        require_type(getattr(module, name), TOKENWISE_NORMS, f"attn_pool.{name}")
    require_type(module.mlp, (Mlp,), "attn_pool.mlp")


def _adapt_blocks(blocks: Any) -> list[PreNormBlock]:
    """Return the adapters of the blocks of a pooler. Raises `UnsupportedModelError`."""
    adapters = []
    for index, block in enumerate(blocks):
        where = f"attn_pool.blocks.{index}"
        require_type(block, (TimmBlock,), where)
        attention = SelfAttention(block.attn, f"{where}.attn")
        adapters.append(PreNormBlock(block, attention, where))
    return adapters


def _require_latent_pool(module: Any, where: str) -> None:
    require_no_hooks(module, where)
    if module.pos_embed is not None:
        raise UnsupportedModelError(
            f"{where} has pos_embed: it tells tokens apart by their place, which merging changes"
        )


def _latent_pool_cost(module: Any) -> PoolCost:
    per_latent = linear_macs(module.q) + linear_macs(module.proj)
    if module.mlp:
        per_latent += linear_macs(module.mlp)
    per_pair = 2 * module.num_heads * module.head_dim
    return PoolCost(
        fixed=module.latent_len * per_latent,
        per_token=linear_macs(module.kv) + module.latent_len * per_pair,
    )
