"""timm's VisionTransformer and DeiT's distilled one, with LayerScale, qk-norm, gates, registers and pools."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.layers import Attention, LayerScale
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tome_core.adapters.checks import linear_macs, require_common_parts, require_known, require_no_hooks, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.cost import BlockCost

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


class ViTBlock:
    """A timm ``Block``, taken apart (see `tome_core.block.Block`)."""

    def __init__(self, block: Any, where: str) -> None:
        require_type(block, (TimmBlock,), where)
        require_known(block, _BLOCK_PARTS, (), where)
        attn = block.attn
        require_type(attn, (Attention,), f"{where}.attn")
        optional = {"gate"} if "gate" not in attn._modules else set()
        require_known(attn, _ATTENTION_PARTS - optional, _ATTENTION_ATTRIBUTES, f"{where}.attn")
        require_common_parts(block, where)
        for name in ("ls1", "ls2"):
            require_type(getattr(block, name), (nn.Identity, LayerScale), f"{where}.{name}")
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


class ViTAdapter(PooledHead):
    """A timm ``VisionTransformer``, taken apart (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (VisionTransformer,), "the model")
        require_known(network, _MODEL_PARTS | ({"attn_pool"} & set(network._modules)), _MODEL_ATTRIBUTES, "the model")
        self.blocks = take_apart(network.blocks)
        skip = 0 if network.pool_include_prefix else None
        super().__init__(network, [block.cost for block in self.blocks], skip)

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``; positions are added here, none are rotary."""
        return embed(self.network, images), None


class DistilledAdapter(PooledHead):
    """DeiT's distilled transformer: class and distillation token each have a head (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (VisionTransformerDistilled,), "the model")
        require_known(network, _MODEL_PARTS | {"head_dist"}, _MODEL_ATTRIBUTES, "the model")
        self.blocks = take_apart(network.blocks)
        super().__init__(network, [block.cost for block in self.blocks])
        self.cost = replace(self.cost, fixed=self.cost.fixed + linear_macs(network.head_dist))

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``; positions are added here, none are rotary."""
        return embed(self.network, images), None

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """``(B, N, D)`` -> ``(B, 2, D)``, the two tokens that the heads read."""
        return tokens[:, :2]

    def features(self, pooled: Tensor) -> Tensor:
        """``(B, D)``, as ``forward_head(pre_logits=True)``."""
        return self.network.head_drop(pooled).mean(dim=1)

    def logits(self, pooled: Tensor) -> Tensor:
        """``(B, classes)``, as ``forward_head``: a pair of them in distilled training."""
        # Their own method, because what it returns depends on how they are being trained.
        return self.network.forward_head(pooled)


def take_apart(blocks: Any) -> list[ViTBlock]:
    """The blocks of a model, each checked. Raises `UnsupportedModelError`."""
    require_type(blocks, (nn.Sequential,), "blocks")
    require_no_hooks(blocks, "blocks")
    return [ViTBlock(block, f"blocks.{index}") for index, block in enumerate(blocks)]


def embed(network: Any, images: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, N0, D)``: patches, positions, patch dropout in training, norm before the blocks."""
    return network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
