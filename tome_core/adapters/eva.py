"""timm's Eva (EVA, EVA02, DINOv3, Perception Encoder), with absolute and rotary positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from tome_core.adapters.checks import (
    linear_macs,
    require_attention,
    require_block,
    require_known,
    require_no_hooks,
    require_type,
)
from tome_core.adapters.heads import PooledHead
from tome_core.cost import BlockCost
from tome_core.errors import UnsupportedModelError
from tome_core.rotary import Rotary, make_rotary

_MODEL_CHILDREN = {
    "patch_embed",
    "pos_drop",
    "norm_pre",
    "blocks",
    "norm",
    "fc_norm",
    "head_drop",
    "head",
}
_OPTIONAL_MODEL_CHILDREN = {"rope", "attn_pool"}
_MODEL_ATTRIBUTES = {
    "_model_args",
    "_traits",
    "attn_pool",
    "cls_embed",
    "cls_token",
    "default_cfg",
    "dynamic_img_size",
    "embed_dim",
    "feature_info",
    "global_pool",
    "grad_checkpointing",
    "head_hidden_size",
    "head_init_scale",
    "in_chans",
    "no_embed_class",
    "num_classes",
    "num_features",
    "num_prefix_tokens",
    "patch_drop",
    "pos_embed",
    "pretrained_cfg",
    "pretrained_model_args",
    "reg_token",
    "rope",
    "rope_mixed",
}
_BLOCK_CHILDREN = {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"}
_BLOCK_ATTRIBUTES = {"gamma_1", "gamma_2", "init_values"}
_ATTENTION_CHILDREN = {"q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"}
_OPTIONAL_ATTENTION_CHILDREN = {"qkv", "q_proj", "k_proj", "v_proj", "gate"}
_ATTENTION_ATTRIBUTES = {
    "attn_dim",
    "fused_attn",
    "head_dim",
    "k_bias",
    "kv_dim",
    "num_heads",
    "num_kv_groups",
    "num_kv_heads",
    "num_prefix_tokens",
    "q_bias",
    "qkv_bias_separate",
    "rotate_half",
    "scale",
    "v_bias",
}


class EvaBlockAdapter:
    """The adapter of ``EvaBlock`` and ``EvaBlockPostNorm`` (see `tome_core.block.Block`)."""

    def __init__(self, block: Any, where: str) -> None:
        require_type(block, (EvaBlock, EvaBlockPostNorm), where)
        require_known(block, _BLOCK_CHILDREN, _BLOCK_ATTRIBUTES, where)
        attn = block.attn
        _require_eva_attention(attn, f"{where}.attn")
        require_block(block, where)
        self.block: Any = block
        self.attn: Any = attn
        self.is_pre_norm = type(block) is EvaBlock
        self.drop_path1 = block.drop_path1
        self.drop_path2 = block.drop_path2
        width = attn.num_heads * attn.head_dim
        self.cost = BlockCost(
            attention=linear_macs(attn),
            mlp=linear_macs(block.mlp),
            pair=2 * width,
            match=attn.head_dim,
            heads=attn.num_heads,
        )

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        attn_drop = self.attn.attn_drop
        return attn_drop.p if attn_drop.training else 0.0

    def attention_input(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.block.norm1(x) if self.is_pre_norm else x

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> queries, keys and values, ``(T, H, d)`` each, before rotation.

        With grouped queries, the keys and values of a group are repeated for each of its queries.
        """
        attn = self.attn
        if attn.qkv is not None:
            q, k, v = self._joint_projection(h)
        else:
            q = attn.q_proj(h).unflatten(-1, (-1, attn.head_dim))
            k = attn.k_proj(h).unflatten(-1, (-1, attn.head_dim))
            v = attn.v_proj(h).unflatten(-1, (-1, attn.head_dim))
        q = attn.q_norm(q)
        k = attn.k_norm(k)
        queries_per_key = attn.num_heads // k.shape[1]
        if queries_per_key > 1:
            k = k.repeat_interleave(queries_per_key, dim=1)
            v = v.repeat_interleave(queries_per_key, dim=1)
        return q, k, v

    def _joint_projection(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        if getattr(attn, "q_bias", None) is None:
            projected = attn.qkv(h)  # (T, 3 * H * d)
        else:
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])  # (3 * H * d,)
            projected = F.linear(h, attn.qkv.weight, bias)
        by_head = projected.unflatten(-1, (3, -1, attn.head_dim))  # (T, 3, H, d)
        q, k, v = by_head.unbind(1)
        return q, k, v

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        attn = self.attn
        out = attn.norm(attended)
        if attn.gate is not None:
            gate = attn.gate(h)
            out = out * gate.sigmoid()
        out = attn.proj(out)
        out = attn.proj_drop(out)
        if not self.is_pre_norm:
            return self.block.norm1(out)
        gamma = self.block.gamma_1
        return out if gamma is None else gamma * out

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        block = self.block
        if not self.is_pre_norm:
            return block.norm2(block.mlp(x))
        out = block.mlp(block.norm2(x))
        gamma = block.gamma_2
        return out if gamma is None else gamma * out


class EvaAdapter(PooledHead):
    """The adapter of a timm ``Eva`` (see `tome_core.model.Adapter`)."""

    network_type: type[nn.Module] = Eva

    def __init__(self, network: Any) -> None:
        require_type(network, (self.network_type,), "the model")
        optional = _OPTIONAL_MODEL_CHILDREN & set(network._modules)
        require_known(network, _MODEL_CHILDREN | optional, _MODEL_ATTRIBUTES, "the model")
        if network.patch_drop is not None:
            raise UnsupportedModelError(
                "patch_drop is not supported in models with rotary positions"
            )
        require_type(network.blocks, (nn.ModuleList,), "blocks")
        require_no_hooks(network.blocks, "blocks")
        self.blocks = []
        for index, block in enumerate(network.blocks):
            self.blocks.append(EvaBlockAdapter(block, f"blocks.{index}"))
        # Its attention pool reads the prefix tokens, too; its other pools do not.
        pool_skip = 0 if network.attn_pool else None
        super().__init__(network, [block.cost for block in self.blocks], pool_skip)
        variants = {bool(getattr(block.attn, "rotate_half", False)) for block in self.blocks}
        if len(variants) > 1:
            raise UnsupportedModelError("the blocks differ in rotate_half")
        self._rotate_half = True in variants

    def embed(self, images: Tensor) -> tuple[Tensor, Rotary | None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, and the angles of all positions."""
        network = self.network
        patches = network.patch_embed(images)
        x, tables = network._pos_embed(patches)  # (B, N0, D), angles of the patches
        rotary = None
        if tables is not None:
            rotary = make_rotary(tables, self.prefix, self._rotate_half)
        return network.norm_pre(x), rotary


def _require_eva_attention(attn: Any, where: str) -> None:
    require_type(attn, (EvaAttention, AttentionRope), where)
    present = _OPTIONAL_ATTENTION_CHILDREN & set(attn._modules)
    absent = _OPTIONAL_ATTENTION_CHILDREN - present
    require_known(attn, _ATTENTION_CHILDREN | present, _ATTENTION_ATTRIBUTES | absent, where)
    require_attention(attn, attn.head_dim, where)
