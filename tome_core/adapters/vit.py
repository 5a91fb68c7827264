"""timm's VisionTransformer and DeiT's distilled one, with LayerScale, qk-norm, gates, registers and pools."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention, DropPath, GluMlp, LayerScale, Mlp, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tome_core.adapters.checks import (
    TOKENWISE_NORMS,
    attention_pool_macs,
    linear_macs,
    require_attention_pool,
    require_known,
    require_no_hooks,
    require_type,
)
from tome_core.cost import BlockCost, Cost
from tome_core.errors import UnsupportedModelError
from tome_core.pooling import POOLS, attention_pool, pool

_MODEL_PARTS = {"patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm", "fc_norm", "head_drop", "head"}
_MODEL_ATTRIBUTES = {
    "_model_args", "_traits", "attn_pool", "cls_token", "default_cfg", "dist_token", "distilled_training",
    "dynamic_img_size", "embed_dim", "feature_info", "fix_init", "global_pool", "grad_checkpointing",
    "has_class_token", "head_hidden_size", "in_chans", "model_args", "no_embed_class", "num_classes", "num_features",
    "num_prefix_tokens", "num_reg_tokens", "pool_include_prefix", "pos_embed", "pretrained_cfg",
    "pretrained_model_args", "reg_token", "weight_init_mode",
}  # fmt: skip
_BLOCK_PARTS = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
_ATTENTION_PARTS = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}
_ATTENTION_ATTRIBUTES = {"num_heads", "head_dim", "attn_dim", "scale", "fused_attn", "gate"}
_TOKENWISE_MLPS = (Mlp, GluMlp, SwiGLU)


class ViTBlock:
    """A timm ``Block``, taken apart (see `tome_core.block.Block`)."""

    def __init__(self, block: Any, where: str) -> None:
        require_type(block, (TimmBlock,), where)
        require_known(block, _BLOCK_PARTS, (), where)
        attn = block.attn
        require_type(attn, (Attention,), f"{where}.attn")
        optional = {"gate"} if "gate" not in attn._modules else set()
        require_known(attn, _ATTENTION_PARTS - optional, _ATTENTION_ATTRIBUTES, f"{where}.attn")
        if attn.scale != attn.head_dim**-0.5:
            raise UnsupportedModelError(f"{where}.attn scales by {attn.scale}, not by head_dim ** -0.5")
        require_type(attn.attn_drop, (nn.Dropout,), f"{where}.attn.attn_drop")
        for name in ("norm1", "norm2"):
            require_type(getattr(block, name), TOKENWISE_NORMS, f"{where}.{name}")
        for name in ("q_norm", "k_norm", "norm"):
            require_type(getattr(attn, name), TOKENWISE_NORMS, f"{where}.attn.{name}")
        for name in ("ls1", "ls2"):
            require_type(getattr(block, name), (nn.Identity, LayerScale), f"{where}.{name}")
        for name in ("drop_path1", "drop_path2"):
            require_type(getattr(block, name), (nn.Identity, DropPath), f"{where}.{name}")
        require_type(block.mlp, _TOKENWISE_MLPS, f"{where}.mlp")
        self.block: Any = block
        self.attn: Any = attn
        self.drop_path1, self.drop_path2 = block.drop_path1, block.drop_path2
        self.cost = BlockCost(linear_macs(attn), linear_macs(block.mlp), 2 * attn.attn_dim, attn.head_dim)

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        return self.attn.attn_drop.p if self.attn.attn_drop.training else 0.0

    def attention_input(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.block.norm1(x)

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> three of ``(T, H, d)``."""
        attn = self.attn
        q, k, v = attn.qkv(h).unflatten(-1, (3, attn.num_heads, attn.head_dim)).unbind(1)
        return attn.q_norm(q), attn.k_norm(k), v

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        attn = self.attn
        out = attn.norm(attended)
        if attn.gate is not None:
            out = out * attn.gate(h).sigmoid()
        return self.block.ls1(attn.proj_drop(attn.proj(out)))

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.block.ls2(self.block.mlp(self.block.norm2(x)))


class ViTAdapter:
    """A timm ``VisionTransformer``, taken apart (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (VisionTransformer, VisionTransformerDistilled), "the model")
        self.distilled = type(network) is VisionTransformerDistilled
        parts = _MODEL_PARTS | ({"head_dist", "attn_pool"} & set(network._modules))
        require_known(network, parts, _MODEL_ATTRIBUTES, "the model")
        if network.attn_pool is not None:
            require_attention_pool(network.attn_pool)
        elif network.global_pool not in POOLS:
            raise UnsupportedModelError(
                f"global_pool={network.global_pool!r} is not supported; supported: {', '.join(POOLS)}, map"
            )
        require_type(network.norm, TOKENWISE_NORMS, "norm")
        require_type(network.blocks, (nn.Sequential,), "blocks")
        require_no_hooks(network.blocks, "blocks")
        self.network: Any = network
        self.blocks = [ViTBlock(block, f"blocks.{index}") for index, block in enumerate(network.blocks)]
        self.prefix: int = network.num_prefix_tokens
        self.cost = self._cost()

    def _cost(self) -> Cost:
        network = self.network
        fixed = network.patch_embed.num_patches * linear_macs(network.patch_embed) + linear_macs(network.head)
        fixed += linear_macs(network.head_dist) if self.distilled else 0
        per_token = 0
        if network.attn_pool is not None:
            fixed_by_pool, per_token = attention_pool_macs(network.attn_pool)
            fixed += fixed_by_pool + (self.prefix * per_token if network.pool_include_prefix else 0)
        return Cost(fixed, tuple(block.cost for block in self.blocks), self.prefix, per_token)

    def embed(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, N0, D)``."""
        network = self.network
        return network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))

    def norm(self, tokens: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.network.norm(tokens)

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """``(B, N, D)`` -> ``(B, D)``; distilled models: ``(B, 2, D)``, the two tokens that their heads read."""
        if self.distilled:
            return tokens[:, :2]
        network = self.network
        skip = 0 if network.pool_include_prefix else self.prefix
        if network.attn_pool is not None:
            return attention_pool(network.attn_pool, tokens[:, skip:], None if sizes is None else sizes[:, skip:])
        return pool(network.global_pool, tokens, sizes, skip)

    def features(self, pooled: Tensor) -> Tensor:
        """``(B, D)``, as ``forward_head(pre_logits=True)``."""
        if self.distilled:
            return self.network.head_drop(pooled).mean(dim=1)
        return self.network.head_drop(self.network.fc_norm(pooled))

    def logits(self, pooled: Tensor) -> Tensor:
        """``(B, classes)``, as ``forward_head``; distilled models in distilled training: a pair of them, as in timm."""
        if self.distilled:
            # Their own method, because what it returns depends on how they are being trained.
            return self.network.forward_head(pooled)
        return self.network.head(self.features(pooled))
