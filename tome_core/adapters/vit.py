"""timm's VisionTransformer, and DeiT's with a distillation token."""

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
from tome_core.adapters.blocks import ParallelBlock, PostNormBlock, PreNormBlock
from tome_core.adapters.checks import linear_macs, require_known, require_no_hooks, require_type
from tome_core.adapters.heads import PooledHead
from tome_core.block import Block
from tome_core.errors import UnsupportedModelError
from tome_core.networks.video_vit import VideoViT

CHILDREN = {
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
ATTRIBUTES = {
    "_model_args",
    "_traits",
    "attn_pool",
    "cls_token",
    "default_cfg",
    "dist_token",
    "distilled_training",
    "dynamic_img_size",
    "embed_dim",
    "feature_info",
    "fix_init",
    "global_pool",
    "grad_checkpointing",
    "has_class_token",
    "head_hidden_size",
    "in_chans",
    "model_args",
    "no_embed_class",
    "num_classes",
    "num_features",
    "num_prefix_tokens",
    "num_reg_tokens",
    "pool_include_prefix",
    "pos_embed",
    "pretrained_cfg",
    "pretrained_model_args",
    "reg_token",
    "weight_init_mode",
}
# Their attention and their MLP run in parallel.
_PARALLEL_BRANCHES = (ParallelScalingBlock, DiffParallelScalingBlock)


class ViTBlock(PreNormBlock):
    """The adapter of a timm ``Block`` with timm's ``Attention`` (see `tome_core.block.Block`)."""

    def __init__(self, block: Any, where: str) -> None:
        require_type(block, (TimmBlock,), where)
        attention = SelfAttention(block.attn, f"{where}.attn")
        super().__init__(block, attention, where)


class ViTAdapter(PooledHead):
    """The adapter of a timm ``VisionTransformer`` (see `tome_core.model.Adapter`)."""

    network_type: type[nn.Module] = VisionTransformer

    def __init__(self, network: Any) -> None:
        require_type(network, (self.network_type,), "the model")
        optional = {"attn_pool"} & set(network._modules)
        require_known(network, CHILDREN | optional, ATTRIBUTES, "the model")
        self.blocks = adapt_blocks(network.blocks)
        pool_skip = 0 if network.pool_include_prefix else None
        super().__init__(network, [block.cost for block in self.blocks], pool_skip)

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, positions included; attention reads none."""
        return embed(self.network, images), None


class VideoAdapter(ViTAdapter):
    """The adapter of a `VideoViT`, which differs from timm's ViT in its embedding alone."""

    network_type = VideoViT


class DistilledAdapter(PooledHead):
    """The adapter of DeiT's distilled model (see `tome_core.model.Adapter`).

    The class token and the distillation token have a head each.
    """

    def __init__(self, network: Any) -> None:
        require_type(network, (VisionTransformerDistilled,), "the model")
        require_known(network, CHILDREN | {"head_dist"}, ATTRIBUTES, "the model")
        self.blocks = adapt_blocks(network.blocks)
        super().__init__(network, [block.cost for block in self.blocks])
        head_macs = linear_macs(network.head_dist)
        self.cost = replace(self.cost, fixed=self.cost.fixed + head_macs)

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """``(B, C, H, W)`` -> ``(B, N0, D)``, positions included; attention reads none."""
        return embed(self.network, images), None

    @property
    def leading(self) -> int:
        """The heads read two tokens."""
        return 2

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """``(B, N, D)`` -> ``(B, 2, D)``, the two tokens that the heads read."""
        return tokens[:, :2]

    def features(self, pooled: Tensor) -> Tensor:
        """Return ``(B, D)``, as ``forward_head(pre_logits=True)``."""
        dropped = self.network.head_drop(pooled)  # (B, 2, D)
        return dropped.mean(dim=1)

    def logits(self, pooled: Tensor) -> Tensor:
        """Return ``(B, classes)``, as ``forward_head``: a pair of them in distilled training."""
        # timm's own method, since its result depends on the mode of training.
        return self.network.forward_head(pooled)


def adapt_blocks(blocks: Any) -> list[Block]:
    """Return the adapters of all blocks. Raises `UnsupportedModelError`."""
    require_type(blocks, (nn.Sequential,), "blocks")
    require_no_hooks(blocks, "blocks")
    return [_adapt_block(block, f"blocks.{index}") for index, block in enumerate(blocks)]


def _adapt_block(block: Any, where: str) -> Block:
    block_type = type(block)
    if block_type in _PARALLEL_BRANCHES:
        raise UnsupportedModelError(
            f"{where} is a {block_type.__name__}: its attention and its MLP read the same tokens"
            " side by side, so there is no point between them to merge at"
        )
    require_type(block, (TimmBlock, ResPostBlock, ParallelThingsBlock), where)
    if block_type is ParallelThingsBlock:
        return ParallelBlock(block, where)
    attn = getattr(block, "attn", None)
    require_type(attn, (Attention, DiffAttention), f"{where}.attn")
    if block_type is TimmBlock and type(attn) is Attention:
        return ViTBlock(block, where)
    attention = _adapt_attention(attn, f"{where}.attn")
    if block_type is TimmBlock:
        return PreNormBlock(block, attention, where)
    return PostNormBlock(block, attention, where)


def _adapt_attention(attn: Any, where: str) -> SelfAttention:
    if type(attn) is Attention:
        return SelfAttention(attn, where)
    return DifferentialAttention(attn, where)


def embed(network: Any, images: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, N0, D)``, as timm's ``forward_features`` before the blocks."""
    patches = network.patch_embed(images)
    x = network._pos_embed(patches)  # (B, N0, D)
    x = network.patch_drop(x)  # drops patches in training only
    return network.norm_pre(x)
