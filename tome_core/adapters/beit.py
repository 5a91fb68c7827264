"""timm's Beit (BEiT, BEiT v2): a bias per distance of two patches, for each block or shared."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.beit import Attention, Beit, Block, RelativePositionBias
from torch import Tensor, nn

from tome_core.adapters.attentions import SelfAttention
from tome_core.adapters.blocks import BRANCHES, PreNormBlock
from tome_core.adapters.checks import require_known, require_no_hooks, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.errors import UnsupportedModelError
from tome_core.relative import RelativeBias

_CHILDREN = {"patch_embed", "pos_drop", "blocks", "norm", "fc_norm", "head_drop", "head"}
_ATTRIBUTES = {
    "_model_args",
    "_traits",
    "cls_token",
    "default_cfg",
    "embed_dim",
    "feature_info",
    "global_pool",
    "grad_checkpointing",
    "head_hidden_size",
    "head_init_scale",
    "in_chans",
    "num_classes",
    "num_features",
    "num_prefix_tokens",
    "pos_embed",
    "pretrained_cfg",
    "pretrained_model_args",
    "rel_pos_bias",
}
_BIAS_ATTRIBUTES = {
    "relative_position_bias_table",
    "relative_position_index",
    "window_area",
    "window_size",
}


class BeitAttention(SelfAttention):
    """Beit's ``Attention``: queries and values have a bias apart from ``qkv``, keys have none."""

    module_type = Attention
    children: ClassVar[set[str]] = {"qkv", "attn_drop", "proj", "proj_drop"}
    optional_children: ClassVar[set[str]] = set()
    attributes: ClassVar[set[str]] = {
        "fused_attn",
        "k_bias",
        "num_heads",
        "num_relative_distance",
        "q_bias",
        "qkv_bias_separate",
        "relative_position_bias_table",
        "relative_position_index",
        "scale",
        "v_bias",
        "window_size",
    }

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        width = int(self.attn.qkv.weight.shape[0])  # 3 * H * d
        return width // (3 * int(self.attn.num_heads))

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> queries, keys and values, ``(T, H, d)`` each."""
        projected = self._project(h)  # (T, 3 * H * d)
        by_head = projected.unflatten(-1, (3, self.attn.num_heads, -1))  # (T, 3, H, d)
        q, k, v = by_head.unbind(1)
        return q, k, v

    def _project(self, h: Tensor) -> Tensor:
        attn = self.attn
        if attn.q_bias is None:
            return attn.qkv(h)
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])  # (3 * H * d,)
        if attn.qkv_bias_separate:
            return attn.qkv(h) + bias
        return F.linear(h, attn.qkv.weight, bias)

    def output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        out = self.attn.proj(attended)
        return self.attn.proj_drop(out)


class BeitBlock(PreNormBlock):
    """The adapter of a Beit ``Block`` (see `tome_core.block.Block`)."""

    children = BRANCHES
    attributes = ("gamma_1", "gamma_2", "init_values")

    def __init__(self, block: Any, where: str) -> None:
        require_type(block, (Block,), where)
        attention = BeitAttention(block.attn, f"{where}.attn")
        super().__init__(block, attention, where)

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        out = self.attention.output(attended, h)
        gamma = self.block.gamma_1
        return out if gamma is None else gamma * out

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        normed = self.block.norm2(x)
        out = self.block.mlp(normed)
        gamma = self.block.gamma_2
        return out if gamma is None else gamma * out


class BeitAdapter(PooledHead):
    """The adapter of a timm ``Beit`` (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (Beit,), "the model")
        optional = {"rel_pos_bias"} & set(network._modules)
        require_known(network, _CHILDREN | optional, _ATTRIBUTES, "the model")
        require_type(network.blocks, (nn.ModuleList,), "blocks")
        require_no_hooks(network.blocks, "blocks")
        self.blocks = []
        for index, block in enumerate(network.blocks):
            self.blocks.append(BeitBlock(block, f"blocks.{index}"))
        if network.rel_pos_bias is not None:
            require_type(network.rel_pos_bias, (RelativePositionBias,), "rel_pos_bias")
            require_known(network.rel_pos_bias, (), _BIAS_ATTRIBUTES, "rel_pos_bias")
        _require_one_grid(self.blocks, network.rel_pos_bias)
        super().__init__(network, [block.cost for block in self.blocks])

    def embed(self, images: Tensor) -> tuple[Tensor, RelativeBias | None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, and the bias of all distances."""
        network = self.network
        patches = network.patch_embed(images)  # (B, patches, D)
        class_tokens = network.cls_token.expand(len(patches), -1, -1)  # (B, 1, D)
        x = torch.cat([class_tokens, patches], dim=1)
        if network.pos_embed is not None:
            x = x + network.pos_embed
        return network.pos_drop(x), self._relative_bias()

    def _relative_bias(self) -> RelativeBias | None:
        """Return the bias of each block plus the shared one, or the shared one alone."""
        shared = self.network.rel_pos_bias
        attentions = [block.attn for block in self.blocks]
        with_bias = [attn for attn in attentions if attn.relative_position_bias_table is not None]
        if with_bias:
            tables = [_table(attn) for attn in with_bias]
            if shared is not None:
                tables = [table + _table(shared) for table in tables]
            return RelativeBias(tuple(tables), with_bias[0].relative_position_index)
        if shared is not None:
            return RelativeBias((_table(shared),), shared.relative_position_index)
        return None


def _require_one_grid(blocks: list[BeitBlock], shared: Any) -> None:
    """Raise `UnsupportedModelError` if relative positions belong to several grids."""
    grids = {block.attn.window_size for block in blocks}
    blocks_have_bias = grids != {None}
    if shared is not None and blocks_have_bias:
        grids.add(shared.window_size)
    if len(grids) > 1:
        raise UnsupportedModelError(
            "the blocks differ in window_size, the grid of their relative positions"
        )


def _table(module: Any) -> Tensor:
    """Return the bias of each distance, ``(H, distances)``."""
    return module.relative_position_bias_table.T
