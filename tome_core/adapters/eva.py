"""timm's Eva: EVA, EVA02, DINOv3, Perception Encoder and their kin, with absolute and rotary positions."""

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

_MODEL_PARTS = {
    "patch_embed",
    "pos_drop",
    "norm_pre",
    "blocks",
    "norm",
    "fc_norm",
    "head_drop",
    "head",
}
_MODEL_ATTRIBUTES = {
    "_model_args", "_traits", "attn_pool", "cls_embed", "cls_token", "default_cfg", "dynamic_img_size", "embed_dim",
    "feature_info", "global_pool", "grad_checkpointing", "head_hidden_size", "head_init_scale", "in_chans",
    "no_embed_class", "num_classes", "num_features", "num_prefix_tokens", "patch_drop", "pos_embed", "pretrained_cfg",
    "pretrained_model_args", "reg_token", "rope", "rope_mixed",
}  # fmt: skip
_BLOCK_PARTS = {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"}
_BLOCK_ATTRIBUTES = {"gamma_1", "gamma_2", "init_values"}
_ATTENTION_PARTS = {"q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"}
_OPTIONAL_ATTENTION_PARTS = {"qkv", "q_proj", "k_proj", "v_proj", "gate"}
_ATTENTION_ATTRIBUTES = {
    "attn_dim", "fused_attn", "head_dim", "k_bias", "kv_dim", "num_heads", "num_kv_groups", "num_kv_heads",
    "num_prefix_tokens", "q_bias", "qkv_bias_separate", "rotate_half", "scale", "v_bias",
}  # fmt: skip


class EvaBlockParts:
    """An ``EvaBlock`` or ``EvaBlockPostNorm``, taken apart (see `tome_core.block.Block`)."""

    def __init__(self, block: Any, where: str) -> None:
        require_type(block, (EvaBlock, EvaBlockPostNorm), where)
        require_known(block, _BLOCK_PARTS, _BLOCK_ATTRIBUTES, where)
        attn = block.attn
        require_type(attn, (EvaAttention, AttentionRope), f"{where}.attn")
        optional = _OPTIONAL_ATTENTION_PARTS & set(attn._modules)
        attributes = _ATTENTION_ATTRIBUTES | _OPTIONAL_ATTENTION_PARTS - optional
        require_known(attn, _ATTENTION_PARTS | optional, attributes, f"{where}.attn")
        require_attention(attn, attn.head_dim, f"{where}.attn")
        require_block(block, where)
        self.block: Any = block
        self.attn: Any = attn
        self.norm_first = type(block) is EvaBlock
        self.drop_path1 = block.drop_path1
        self.drop_path2 = block.drop_path2
        width = attn.num_heads * attn.head_dim
        self.cost = BlockCost(linear_macs(attn), linear_macs(block.mlp), 2 * width, attn.head_dim)

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        return self.attn.attn_drop.p if self.attn.attn_drop.training else 0.0

    def attention_input(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.block.norm1(x) if self.norm_first else x

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> three of ``(T, H, d)``, not turned yet; keys and values of a group repeated for its queries."""
        attn = self.attn
        if attn.qkv is not None:
            if getattr(attn, "q_bias", None) is None:
                out = attn.qkv(h)
            else:
                out = F.linear(
                    h, attn.qkv.weight, torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
                )
            q, k, v = out.unflatten(-1, (3, -1, attn.head_dim)).unbind(1)
        else:
            q, k, v = (
                project(h).unflatten(-1, (-1, attn.head_dim))
                for project in (attn.q_proj, attn.k_proj, attn.v_proj)
            )
        q = attn.q_norm(q)
        k = attn.k_norm(k)
        groups = attn.num_heads // k.shape[1]
        return (
            (q, k, v)
            if groups == 1
            else (q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))
        )

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        attn = self.attn
        block = self.block
        out = attn.norm(attended)
        if attn.gate is not None:
            out = out * attn.gate(h).sigmoid()
        out = attn.proj_drop(attn.proj(out))
        if not self.norm_first:
            return block.norm1(out)
        return out if block.gamma_1 is None else block.gamma_1 * out

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        block = self.block
        if not self.norm_first:
            return block.norm2(block.mlp(x))
        out = block.mlp(block.norm2(x))
        return out if block.gamma_2 is None else block.gamma_2 * out


class EvaAdapter(PooledHead):
    """A timm ``Eva``, taken apart (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (Eva,), "the model")
        require_known(
            network,
            _MODEL_PARTS | ({"rope", "attn_pool"} & set(network._modules)),
            _MODEL_ATTRIBUTES,
            "the model",
        )
        if network.patch_drop is not None:
            raise UnsupportedModelError(
                "patch_drop is not supported in models with rotary positions"
            )
        require_type(network.blocks, (nn.ModuleList,), "blocks")
        require_no_hooks(network.blocks, "blocks")
        self.blocks = [
            EvaBlockParts(block, f"blocks.{index}") for index, block in enumerate(network.blocks)
        ]
        # Its attention pool reads the prefix tokens too; its other pools do not.
        super().__init__(
            network,
            [block.cost for block in self.blocks],
            pool_skip=0 if network.attn_pool else None,
        )
        halves = {bool(getattr(block.attn, "rotate_half", False)) for block in self.blocks}
        if len(halves) > 1:
            raise UnsupportedModelError("the blocks differ in rotate_half")
        self._half = halves.pop() if halves else False

    def embed(self, images: Tensor) -> tuple[Tensor, Rotary | None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, and the angles of all places."""
        network = self.network
        x, tables = network._pos_embed(network.patch_embed(images))
        rotary = None if tables is None else make_rotary(tables, self.prefix, self._half)
        return network.norm_pre(x), rotary
