"""The weights of plain Vision Transformers, for kernels that embed images and run all their blocks."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import GELU, LayerNorm, Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tome_core.adapters.vit import ViTBlock
from tome_core.backends.cuda.embedding import EmbeddingWeights
from tome_core.backends.cuda.encoder import BlockWeights, Linear, Norm
from tome_core.backends.patch_embedding import MatrixPatches

_LAYER_NORMS = (nn.LayerNorm, LayerNorm)


def plain_weights(adapter: Any) -> list[BlockWeights] | None:
    """Those of the blocks of ``adapter``, whose scales were folded; None unless all are plain (see `BlockWeights`)."""
    if not all(type(block) is ViTBlock and _is_plain(block.block) for block in adapter.blocks):
        return None
    return [_weights_of(wrapped.block) for wrapped in adapter.blocks]


@torch.no_grad()
def embedding_weights(adapter: Any) -> EmbeddingWeights | None:
    """Those of what comes before the blocks of ``adapter``; None unless it is plain (see `EmbeddingWeights`)."""
    network = adapter.network
    if type(network) not in (
        VisionTransformer,
        VisionTransformerDistilled,
    ) or not _is_plain_embedding(network):
        return None
    projection = network.patch_embed.proj
    return EmbeddingWeights(
        weight=projection.weight,
        bias=projection.bias,
        table=_table_of(network),
        prefix=adapter.prefix,
        size=network.patch_embed.img_size,
        norm=network.norm_pre,
    )


def _table_of(network: Any) -> Tensor:
    """What the tokens of every image begin with: see `EmbeddingWeights`."""
    names = "cls_token", "dist_token", "reg_token"
    tokens = [token[0] for name in names if (token := getattr(network, name, None)) is not None]
    positions: Tensor = network.pos_embed[0]
    if not tokens:
        return positions.clone()
    prefix = torch.cat(tokens)
    if network.no_embed_class:
        return torch.cat([prefix, positions])
    return torch.cat([prefix + positions[: len(prefix)], positions[len(prefix) :]])


def _is_plain_embedding(network: Any) -> bool:
    patches = network.patch_embed
    return (
        type(patches) is PatchEmbed
        and type(patches.proj) is MatrixPatches
        and type(patches.norm) is nn.Identity
        and patches.flatten
        and patches.img_size is not None
        and not patches.dynamic_img_pad
        and not network.dynamic_img_size
        and network.pos_embed is not None
    )


def _weights_of(block: Any) -> BlockWeights:
    def linear(layer: Any) -> Linear:
        return Linear(layer.weight, layer.bias)

    def norm(layer: Any) -> Norm:
        return Norm(layer.weight, layer.bias, layer.eps)

    return BlockWeights(
        norm1=norm(block.norm1),
        qkv=linear(block.attn.qkv),
        proj=linear(block.attn.proj),
        norm2=norm(block.norm2),
        fc1=linear(block.mlp.fc1),
        fc2=linear(block.mlp.fc2),
        heads=block.attn.num_heads,
    )


def _is_plain(block: Any) -> bool:
    attn = block.attn
    mlp = block.mlp
    if type(mlp) is not Mlp:
        return False
    linears = attn.qkv, attn.proj, mlp.fc1, mlp.fc2
    nothing = block.ls1, block.ls2, attn.q_norm, attn.k_norm, attn.norm, mlp.norm
    return (
        all(type(linear) is nn.Linear for linear in linears)
        and all(_is_plain_norm(norm) for norm in (block.norm1, block.norm2))
        and all(type(module) is nn.Identity for module in nothing)
        and type(mlp.act) in (nn.GELU, GELU)
        and getattr(mlp.act, "approximate", "none") == "none"
        and getattr(attn, "gate", None) is None
    )


def _is_plain_norm(norm: Any) -> bool:
    learnt = norm.weight is not None and norm.bias is not None
    return type(norm) in _LAYER_NORMS and learnt and len(norm.normalized_shape) == 1
