"""timm's VisionTransformerRelPos: a bias per distance of two patches, learned or from an MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import RelPosBias, RelPosMlp
from timm.models.vision_transformer_relpos import (
    RelPosAttention,
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)
from torch import Tensor, nn

from tome_core.adapters.attentions import SelfAttention
from tome_core.adapters.blocks import PostNormBlock, PreNormBlock
from tome_core.adapters.checks import linear_macs, require_known, require_no_hooks, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.errors import UnsupportedModelError
from tome_core.relative import RelativeBias

_CHILDREN = {"patch_embed", "blocks", "norm", "fc_norm", "head_drop", "head"}
_ATTRIBUTES = {
    "_model_args",
    "_traits",
    "cls_token",
    "default_cfg",
    "embed_dim",
    "feature_info",
    "fix_init",
    "global_pool",
    "grad_checkpointing",
    "head_hidden_size",
    "in_chans",
    "num_classes",
    "num_features",
    "num_prefix_tokens",
    "pretrained_cfg",
    "pretrained_model_args",
    "shared_rel_pos",
    "weight_init_mode",
}
_BIAS_ATTRIBUTES = {
    "bias_gain",
    "bias_shape",
    "mode",
    "num_heads",
    "prefix_tokens",
    "pretrained_window_size",
    "rel_coords_log",
    "relative_position_bias_table",
    "relative_position_index",
    "window_area",
    "window_size",
}


class RelPosSelfAttention(SelfAttention):
    """timm's ``RelPosAttention``; the `Strategy` adds the bias of ``rel_pos`` to the logits."""

    module_type = RelPosAttention
    children: ClassVar[set[str]] = {"qkv", "q_norm", "k_norm", "attn_drop", "proj", "proj_drop"}
    optional_children: ClassVar[set[str]] = {"rel_pos"}
    attributes: ClassVar[set[str]] = {"num_heads", "head_dim", "scale", "fused_attn"}

    def __init__(self, attn: Any, where: str) -> None:
        super().__init__(attn, where)
        # Without rel_pos, whose MLP reads distances, not tokens.
        self.linear = linear_macs(attn.qkv) + linear_macs(attn.proj)

    def output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        out = self.attn.proj(attended)
        return self.attn.proj_drop(out)


class RelPosAdapter(PooledHead):
    """The adapter of a timm ``VisionTransformerRelPos`` (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (VisionTransformerRelPos,), "the model")
        optional = {"shared_rel_pos"} & set(network._modules)
        require_known(network, _CHILDREN | optional, _ATTRIBUTES, "the model")
        require_type(network.blocks, (nn.ModuleList,), "blocks")
        require_no_hooks(network.blocks, "blocks")
        self.blocks = []
        for index, block in enumerate(network.blocks):
            self.blocks.append(_adapt_block(block, f"blocks.{index}"))
        super().__init__(network, [block.cost for block in self.blocks])
        modules = self._bias_modules()
        _require_equal_biases(modules)
        bias_macs = sum(_bias_macs(module) for module in modules)
        self.cost = replace(self.cost, fixed=self.cost.fixed + bias_macs)

    def embed(self, images: Tensor) -> tuple[Tensor, RelativeBias]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, and the bias of all distances."""
        network = self.network
        x = network.patch_embed(images)  # (B, patches, D)
        if network.cls_token is not None:
            class_tokens = network.cls_token.expand(len(x), -1, -1)  # (B, 1, D)
            x = torch.cat([class_tokens, x], dim=1)
        modules = self._bias_modules()
        tables = tuple(_table(module) for module in modules)
        return x, RelativeBias(tables, _index(modules[0]))

    def _bias_modules(self) -> list[Any]:
        """Return the relative position module of each block, or the one that they share."""
        of_blocks = [block.attn.rel_pos for block in self.blocks]
        if all(module is None for module in of_blocks):
            return [self.network.shared_rel_pos]
        return of_blocks


def _adapt_block(block: Any, where: str) -> PreNormBlock:
    require_type(block, (RelPosBlock, ResPostRelPosBlock), where)
    attention = RelPosSelfAttention(getattr(block, "attn", None), f"{where}.attn")
    if type(block) is RelPosBlock:
        return PreNormBlock(block, attention, where)
    return PostNormBlock(block, attention, where)


def _require_equal_biases(modules: list[Any]) -> None:
    """Raise `UnsupportedModelError` unless all blocks index their distances in the same way."""
    for index, module in enumerate(modules):
        _require_bias(module, f"the relative position of blocks.{index}")
    variants = {(type(module), module.window_size, module.prefix_tokens) for module in modules}
    if len(variants) > 1:
        raise UnsupportedModelError("the blocks differ in how they tell relative positions apart")


def _require_bias(module: Any, where: str) -> None:
    require_type(module, (RelPosBias, RelPosMlp), where)
    if type(module) is RelPosBias:
        require_known(module, (), _BIAS_ATTRIBUTES, where)
        return
    require_known(module, {"bias_act", "mlp"}, _BIAS_ATTRIBUTES, where)
    require_type(module.bias_act, (nn.Identity, nn.Sigmoid), f"{where}: bias_act")


def _bias_macs(module: Any) -> int:
    """Return the MACs of computing a bias, once per batch."""
    if type(module) is RelPosBias:
        return 0
    return _distances(module) * linear_macs(module.mlp)


def _distances(module: Any) -> int:
    rows, columns = module.rel_coords_log.shape[:2]
    return int(rows * columns)


def _table(module: Any) -> Tensor:
    """Return the bias of each distance, ``(H, distances)``.

    If prefix tokens have no distance, an extra column of zeros follows for pairs with them.
    """
    if type(module) is RelPosBias:
        return module.relative_position_bias_table.T
    biases = module.mlp(module.rel_coords_log)  # (rows, columns, H)
    table = module.bias_act(biases.flatten(0, 1)).T  # (H, distances)
    if module.bias_gain is not None:
        table = module.bias_gain * table
    if module.prefix_tokens:
        table = F.pad(table, (0, 1))
    return table


def _index(module: Any) -> Tensor:
    """Return the column of `_table` for each query and key, int64 ``(N0, N0)``."""
    index = module.relative_position_index
    if type(module) is RelPosBias:
        return index.unflatten(0, (module.bias_shape[0], -1))
    of_patches = index.unflatten(0, (module.window_area, -1))  # (patches, patches)
    prefix = module.prefix_tokens
    return F.pad(of_patches, (prefix, 0, prefix, 0), value=_distances(module))
