"""timm's Beit (BEiT, BEiT v2): a bias for the distance of two patches, of each block or shared by all."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.beit import Attention, Beit, Block, RelativePositionBias
from torch import Tensor, nn

from tome_core.adapters.attentions import SelfAttention
from tome_core.adapters.blocks import BRANCHES, NormFirst
from tome_core.adapters.checks import require_known, require_no_hooks, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.errors import UnsupportedModelError
from tome_core.relative import RelativeBias

_PARTS = {"patch_embed", "pos_drop", "blocks", "norm", "fc_norm", "head_drop", "head"}
_ATTRIBUTES = {
    "_model_args", "_traits", "cls_token", "default_cfg", "embed_dim", "feature_info", "global_pool",
    "grad_checkpointing", "head_hidden_size", "head_init_scale", "in_chans", "num_classes", "num_features",
    "num_prefix_tokens", "pos_embed", "pretrained_cfg", "pretrained_model_args", "rel_pos_bias",
}  # fmt: skip
_BIAS_ATTRIBUTES = {
    "relative_position_bias_table",
    "relative_position_index",
    "window_area",
    "window_size",
}


class BeitAttention(SelfAttention):
    """Beit's ``Attention``: its keys have no bias, its queries and values have one apart from their weights."""

    kind = Attention
    parts: ClassVar[set[str]] = {"qkv", "attn_drop", "proj", "proj_drop"}
    optional: ClassVar[set[str]] = set()
    attributes: ClassVar[set[str]] = {
        "fused_attn", "k_bias", "num_heads", "num_relative_distance", "q_bias", "qkv_bias_separate",
        "relative_position_bias_table", "relative_position_index", "scale", "v_bias", "window_size",
    }  # fmt: skip

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return int(self.attn.qkv.weight.shape[0]) // (3 * int(self.attn.num_heads))

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> three of ``(T, H, d)``."""
        attn = self.attn
        if attn.q_bias is None:
            out = attn.qkv(h)
        else:
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
            out = (
                attn.qkv(h) + bias if attn.qkv_bias_separate else F.linear(h, attn.qkv.weight, bias)
            )
        q, k, v = out.unflatten(-1, (3, attn.num_heads, -1)).unbind(1)
        return q, k, v

    def output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        return self.attn.proj_drop(self.attn.proj(attended))


class BeitBlock(NormFirst):
    """A Beit ``Block``, taken apart (see `tome_core.block.Block`)."""

    parts = BRANCHES
    attributes = ("gamma_1", "gamma_2", "init_values")

    def __init__(self, block: Any, where: str) -> None:
        require_type(block, (Block,), where)
        super().__init__(block, BeitAttention(block.attn, f"{where}.attn"), where)

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        out = self.attention.output(attended, h)
        return out if self.block.gamma_1 is None else self.block.gamma_1 * out

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        out = self.block.mlp(self.block.norm2(x))
        return out if self.block.gamma_2 is None else self.block.gamma_2 * out


class BeitAdapter(PooledHead):
    """A timm ``Beit``, taken apart (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (Beit,), "the model")
        require_known(
            network, _PARTS | ({"rel_pos_bias"} & set(network._modules)), _ATTRIBUTES, "the model"
        )
        require_type(network.blocks, (nn.ModuleList,), "blocks")
        require_no_hooks(network.blocks, "blocks")
        self.blocks = [
            BeitBlock(block, f"blocks.{index}") for index, block in enumerate(network.blocks)
        ]
        grids = {block.attn.window_size for block in self.blocks}
        if network.rel_pos_bias is not None:
            require_type(network.rel_pos_bias, (RelativePositionBias,), "rel_pos_bias")
            require_known(network.rel_pos_bias, (), _BIAS_ATTRIBUTES, "rel_pos_bias")
            if grids != {None}:
                grids.add(network.rel_pos_bias.window_size)
        if len(grids) > 1:
            raise UnsupportedModelError(
                "the blocks differ in window_size, the grid of their relative positions"
            )
        super().__init__(network, [block.cost for block in self.blocks])

    def embed(self, images: Tensor) -> tuple[Tensor, RelativeBias | None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, and the bias of all distances."""
        network = self.network
        x = network.patch_embed(images)
        x = torch.cat([network.cls_token.expand(len(x), -1, -1), x], dim=1)
        if network.pos_embed is not None:
            x = x + network.pos_embed
        return network.pos_drop(x), self._relative()

    def _relative(self) -> RelativeBias | None:
        """The bias of each block, to which the shared one is added; or that alone."""
        shared = self.network.rel_pos_bias
        own = [
            block.attn
            for block in self.blocks
            if block.attn.relative_position_bias_table is not None
        ]
        if not own:
            return (
                None
                if shared is None
                else RelativeBias((_table(shared),), shared.relative_position_index)
            )
        tables = [_table(attn) if shared is None else _table(attn) + _table(shared) for attn in own]
        return RelativeBias(tuple(tables), own[0].relative_position_index)


def _table(module: Any) -> Tensor:
    """``(H, distances)``."""
    return module.relative_position_bias_table.T
