"""Weights of plain Vision Transformers, for GPU kernels that run the embedding and all blocks."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tome_core.adapters.class_and_mean import ClassAndMeanViT
from tome_core.adapters.plain_layers import are_identities, is_exact_gelu, is_plain_layer_norm
from tome_core.adapters.vit import ViTBlock
from tome_core.backends.cuda.embedding import EmbeddingWeights
from tome_core.backends.cuda.encoder import BlockWeights, Linear, Norm
from tome_core.backends.patch_embedding import MatrixPatches
from tome_core.networks.tubelets import TubeletEmbed, TubeletProjection
from tome_core.networks.video_vit import VideoViT

_NETWORKS = (VisionTransformer, VisionTransformerDistilled, ClassAndMeanViT, VideoViT)
# Patch embeddings, and what is in them a product of patches that do not overlap.
_PRODUCTS: dict[type, type] = {PatchEmbed: MatrixPatches, TubeletEmbed: TubeletProjection}


def plain_weights(adapter: Any) -> list[BlockWeights] | None:
    """Return the weights of all blocks of ``adapter``, after `fold_scales`.

    None unless all are plain (see `BlockWeights`).
    """
    weights = []
    for block_adapter in adapter.blocks:
        block = block_adapter.block
        if type(block_adapter) is not ViTBlock or not _is_plain_block(block):
            return None
        weights.append(_block_weights(block))
    return weights


@torch.no_grad()
def embedding_weights(adapter: Any) -> EmbeddingWeights | None:
    """Return the weights of the embedding of ``adapter``, after `replace_convolutions`.

    None unless it is plain (see `EmbeddingWeights`).
    """
    network = adapter.network
    if type(network) not in _NETWORKS or not _is_plain_embedding(network):
        return None
    projection = network.patch_embed.proj
    return EmbeddingWeights(
        weight=projection.weight,
        bias=projection.bias,
        table=_embedding_table(network),
        prefix=adapter.prefix,
        size=network.patch_embed.img_size,
        norm=network.norm_pre,
        frames=getattr(network.patch_embed, "frames", 1),
    )


def _embedding_table(network: Any) -> Tensor:
    """Return prefix tokens and positions, ``(N0, D)``: see `EmbeddingWeights`."""
    prefix_tokens = []
    for name in ("cls_token", "dist_token", "reg_token"):
        tokens = getattr(network, name, None)  # (1, count, D)
        if tokens is not None:
            prefix_tokens.append(tokens[0])
    positions: Tensor = network.pos_embed[0]
    if not prefix_tokens:
        return positions.clone()
    prefix = torch.cat(prefix_tokens)  # (P, D)
    if network.no_embed_class:
        return torch.cat([prefix, positions])
    count = len(prefix)
    of_prefix = prefix + positions[:count]
    of_patches = positions[count:]
    return torch.cat([of_prefix, of_patches])


def _is_plain_embedding(network: Any) -> bool:
    patch_embed = network.patch_embed
    if type(patch_embed.proj) is not _PRODUCTS.get(type(patch_embed)):
        return False
    if patch_embed.img_size is None or patch_embed.dynamic_img_pad or network.dynamic_img_size:
        return False
    returns_sequence = are_identities(patch_embed.norm) and patch_embed.flatten
    return returns_sequence and network.pos_embed is not None


def _block_weights(block: Any) -> BlockWeights:
    return BlockWeights(
        norm1=_norm_weights(block.norm1),
        qkv=_linear_weights(block.attn.qkv),
        proj=_linear_weights(block.attn.proj),
        norm2=_norm_weights(block.norm2),
        fc1=_linear_weights(block.mlp.fc1),
        fc2=_linear_weights(block.mlp.fc2),
        heads=block.attn.num_heads,
    )


def _linear_weights(layer: Any) -> Linear:
    return Linear(layer.weight, layer.bias)


def _norm_weights(layer: Any) -> Norm:
    return Norm(layer.weight, layer.bias, layer.eps)


def _is_plain_block(block: Any) -> bool:
    attn = block.attn
    mlp = block.mlp
    if type(mlp) is not Mlp or getattr(attn, "gate", None) is not None:
        return False
    if not are_identities(block.ls1, block.ls2, attn.q_norm, attn.k_norm, attn.norm, mlp.norm):
        return False
    linears = (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)
    if any(type(linear) is not nn.Linear for linear in linears):
        return False
    norms_are_plain = is_plain_layer_norm(block.norm1) and is_plain_layer_norm(block.norm2)
    return norms_are_plain and is_exact_gelu(mlp.act)
