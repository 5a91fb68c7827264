"""timm's VisionTransformer and DeiT's distilled one, with LayerScale, qk-norm, gates, registers and pools."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.layers import Attention, DiffAttention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from tome_core.adapters.attentions import DifferentialAttention, SelfAttention
from tome_core.adapters.blocks import NormFirst, NormLast, SideBySide
from tome_core.adapters.checks import linear_macs, require_known, require_no_hooks, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.block import Block
from tome_core.errors import UnsupportedModelError

_MODEL_PARTS = {
    "patch_embed",
    "pos_drop",
    "patch_drop",
    "norm_pre",
    "blocks",
    "norm",
    "fc_norm",
    "head_drop",
    "head",
}
_MODEL_ATTRIBUTES = {
    "_model_args", "_traits", "attn_pool", "cls_token", "default_cfg", "dist_token", "distilled_training",
    "dynamic_img_size", "embed_dim", "feature_info", "fix_init", "global_pool", "grad_checkpointing",
    "has_class_token", "head_hidden_size", "in_chans", "model_args", "no_embed_class", "num_classes", "num_features",
    "num_prefix_tokens", "num_reg_tokens", "pool_include_prefix", "pos_embed", "pretrained_cfg",
    "pretrained_model_args", "reg_token", "weight_init_mode",
}  # fmt: skip
_PARALLEL = (ParallelScalingBlock, DiffParallelScalingBlock)


class ViTBlock(NormFirst):
    """A timm ``Block`` with timm's ``Attention``, and nothing else, taken apart (see `tome_core.block.Block`)."""

    def __init__(self, block: Any, where: str) -> None:
        require_type(block, (TimmBlock,), where)
        super().__init__(block, SelfAttention(block.attn, f"{where}.attn"), where)


class ViTAdapter(PooledHead):
    """A timm ``VisionTransformer``, taken apart (see `tome_core.model.Adapter`)."""

    def __init__(self, network: Any) -> None:
        require_type(network, (VisionTransformer,), "the model")
        require_known(
            network,
            _MODEL_PARTS | ({"attn_pool"} & set(network._modules)),
            _MODEL_ATTRIBUTES,
            "the model",
        )
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

    @property
    def leading(self) -> int:
        """The two tokens that the heads read."""
        return 2

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


def take_apart(blocks: Any) -> list[Block]:
    """The blocks of a model, each checked. Raises `UnsupportedModelError`."""
    require_type(blocks, (nn.Sequential,), "blocks")
    require_no_hooks(blocks, "blocks")
    return [take_block_apart(block, f"blocks.{index}") for index, block in enumerate(blocks)]


def take_block_apart(block: Any, where: str) -> Block:
    """One block, checked. Raises `UnsupportedModelError`."""
    if type(block) in _PARALLEL:
        raise UnsupportedModelError(
            f"{where} is a {type(block).__name__}: its attention and its MLP read the same tokens"
            " side by side, so there is no point between them to merge at"
        )
    require_type(block, (TimmBlock, ResPostBlock, ParallelThingsBlock), where)
    if type(block) is ParallelThingsBlock:
        return SideBySide(block, where)
    attn = getattr(block, "attn", None)
    require_type(attn, (Attention, DiffAttention), f"{where}.attn")
    if type(block) is TimmBlock and type(attn) is Attention:
        return ViTBlock(block, where)
    attention = (SelfAttention if type(attn) is Attention else DifferentialAttention)(
        attn, f"{where}.attn"
    )
    return (NormFirst if type(block) is TimmBlock else NormLast)(block, attention, where)


def embed(network: Any, images: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, N0, D)``: patches, positions, patch dropout in training, norm before the blocks."""
    return network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
