"""timm's VisionTransformerRelPos: a bias for the distance of two patches, learned or computed from it by an MLP."""

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
from tome_core.adapters.blocks import NormFirst, NormLast
from tome_core.adapters.checks import linear_macs, require_known, require_no_hooks, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.errors import UnsupportedModelError
from tome_core.relative import RelativeBias

_PARTS = {"patch_embed", "blocks", "norm", "fc_norm", "head_drop", "head"}
_ATTRIBUTES = {
    "_model_args", "_traits", "cls_token", "default_cfg", "embed_dim", "feature_info", "fix_init", "global_pool",
    "grad_checkpointing", "head_hidden_size", "in_chans", "num_classes", "num_features", "num_prefix_tokens",
    "pretrained_cfg", "pretrained_model_args", "shared_rel_pos", "weight_init_mode",
}  # fmt: skip
_BIAS_ATTRIBUTES = {
    "bias_gain", "bias_shape", "mode", "num_heads", "prefix_tokens", "pretrained_window_size", "rel_coords_log",
    "relative_position_bias_table", "relative_position_index", "window_area", "window_size",
}  # fmt: skip


class RelPosSelfAttention(SelfAttention):
    """timm's ``RelPosAttention``; what its ``rel_pos`` says is added by whoever attends."""

    kind = RelPosAttention
    parts: ClassVar[set[str]] = {"qkv", "q_norm", "k_norm", "attn_drop", "proj", "proj_drop"}
    optional: ClassVar[set[str]] = {"rel_pos"}
    attributes: ClassVar[set[str]] = {"num_heads", "head_dim", "scale", "fused_attn"}

    def __init__(self, attn: Any, where: str) -> None:
        super().__init__(attn, where)
        self.linear = linear_macs(attn.qkv) + linear_macs(
            attn.proj
        )  # an MLP in rel_pos reads distances, not tokens

    def output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        return self.attn.proj_drop(self.attn.proj(attended))


class RelPosAdapter(PooledHead):
    """A timm ``VisionTransformerRelPos``, taken apart (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (VisionTransformerRelPos,), "the model")
        require_known(
            network, _PARTS | ({"shared_rel_pos"} & set(network._modules)), _ATTRIBUTES, "the model"
        )
        require_type(network.blocks, (nn.ModuleList,), "blocks")
        require_no_hooks(network.blocks, "blocks")
        self.blocks = [
            _take_apart(block, f"blocks.{index}") for index, block in enumerate(network.blocks)
        ]
        super().__init__(network, [block.cost for block in self.blocks])
        for index, module in enumerate(self._biases()):
            _require_bias(module, f"the relative position of blocks.{index}")
        if (
            len(
                {
                    (type(module), module.window_size, module.prefix_tokens)
                    for module in self._biases()
                }
            )
            > 1
        ):
            raise UnsupportedModelError(
                "the blocks differ in how they tell relative positions apart"
            )
        self.cost = replace(
            self.cost, fixed=self.cost.fixed + sum(_bias_macs(module) for module in self._biases())
        )

    def embed(self, images: Tensor) -> tuple[Tensor, RelativeBias]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, and the bias of all distances."""
        network = self.network
        x = network.patch_embed(images)
        if network.cls_token is not None:
            x = torch.cat([network.cls_token.expand(len(x), -1, -1), x], dim=1)
        modules = self._biases()
        return x, RelativeBias(tuple(_table(module) for module in modules), _index(modules[0]))

    def _biases(self) -> list[Any]:
        """The relative position of each block, or the one that they share."""
        own = [block.attn.rel_pos for block in self.blocks]
        if all(module is None for module in own):
            return [self.network.shared_rel_pos]
        return own


def _take_apart(block: Any, where: str) -> NormFirst:
    require_type(block, (RelPosBlock, ResPostRelPosBlock), where)
    attention = RelPosSelfAttention(getattr(block, "attn", None), f"{where}.attn")
    return (NormFirst if type(block) is RelPosBlock else NormLast)(block, attention, where)


def _require_bias(module: Any, where: str) -> None:
    require_type(module, (RelPosBias, RelPosMlp), where)
    parts = {"bias_act", "mlp"} if type(module) is RelPosMlp else set()
    require_known(module, parts, _BIAS_ATTRIBUTES, where)
    if parts:
        require_type(module.bias_act, (nn.Identity, nn.Sigmoid), f"{where}: bias_act")


def _bias_macs(module: Any) -> int:
    """MACs of computing a bias, once for a batch."""
    return 0 if type(module) is RelPosBias else _distances(module) * linear_macs(module.mlp)


def _distances(module: Any) -> int:
    return int(module.rel_coords_log.shape[0] * module.rel_coords_log.shape[1])


def _table(module: Any) -> Tensor:
    """The bias of each distance, ``(H, distances)``; one more, of 0, for pairs with a prefix token that has none."""
    if type(module) is RelPosBias:
        return module.relative_position_bias_table.T
    table = module.bias_act(module.mlp(module.rel_coords_log).flatten(0, 1)).T
    if module.bias_gain is not None:
        table = module.bias_gain * table
    return F.pad(table, (0, 1)) if module.prefix_tokens else table


def _index(module: Any) -> Tensor:
    """int64 ``(N0, N0)``: for query and key, the column of `_table`."""
    if type(module) is RelPosBias:
        return module.relative_position_index.unflatten(0, (module.bias_shape[0], -1))
    index = module.relative_position_index.unflatten(0, (module.window_area, -1))
    return F.pad(
        index, (module.prefix_tokens, 0, module.prefix_tokens, 0), value=_distances(module)
    )
