"""Small models of V-JEPA 2: ours, transformers' with the same weights, and their angles by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.tome_core.models import CLASSES, DEPTH, make_images, randomise
from tests.tome_core.oracle_layers import Vector
from tome_core.networks.vjepa2 import VJepa2

SIZES: dict[str, Any] = {
    "frames": 4,
    "tubelet": 2,
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 32,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}


def make_vjepa2(seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> VJepa2:
    """A small network in evaluation mode, of 32 tubelets unless ``options`` say otherwise."""
    vit = VJepa2(**{**SIZES, "depth": DEPTH, "num_classes": CLASSES, "pooler_depth": 2, **options})
    randomise(vit, seed)
    return vit.eval().to(dtype)


def make_clips(vit: Any, batch: int, seed: int = 0) -> Tensor:
    """Noise of unit variance, of the size and dtype of the model."""
    dtype = vit.patch_embed.proj.weight.dtype
    return make_images(batch, vit.patch_embed.img_size, seed, dtype)


def rotation(vit: VJepa2) -> Callable[[int, Vector], Vector]:
    """What rotates a query or key of one head at a place of the input, channel by channel."""
    times, rows, columns = vit.grid
    head_dim = vit.blocks[0].attn.head_dim
    width = 2 * (head_dim // 3 // 2)
    half = width // 2

    def rotate(place: int, x: Vector) -> Vector:
        coordinates = (place // (rows * columns), place // columns % rows, place % columns)
        assert coordinates[0] < times
        rotated = np.copy(x)
        for axis, coordinate in enumerate(coordinates):
            for channel in range(width):
                at = axis * width + channel
                angle = coordinate / 10_000 ** (channel % half / half)
                partner = -x[at + 1] if channel % 2 == 0 else x[at - 1]
                rotated[at] = x[at] * math.cos(angle) + partner * math.sin(angle)
        return rotated

    return rotate


@torch.no_grad()
def copy_weights(theirs: Any, ours: VJepa2) -> None:
    """Copy the weights of transformers' ``VJEPA2ForVideoClassification`` into ``ours``."""
    encoder = theirs.vjepa2.encoder
    _copy(ours.patch_embed.proj, encoder.embeddings.patch_embeddings.proj)
    for layer, block in zip(encoder.layer, ours.blocks, strict=True):
        attention = layer.attention
        _copy(block.attn.qkv, attention.query, attention.key, attention.value)
        _copy(block.attn.proj, attention.proj)
        _copy(block.norm1, layer.norm1)
        _copy(block.norm2, layer.norm2)
        _copy_mlp(block.mlp, layer.mlp)
    _copy(ours.norm, encoder.layernorm)
    _copy(ours.head, theirs.classifier)
    _copy_pooler(ours.attn_pool, theirs.pooler)


def _copy_pooler(ours: Any, theirs: Any) -> None:
    for layer, block in zip(theirs.self_attention_layers, ours.blocks, strict=True):
        attention = layer.self_attn
        _copy(block.attn.qkv, attention.q_proj, attention.k_proj, attention.v_proj)
        _copy(block.attn.proj, attention.out_proj)
        _copy(block.norm1, layer.layer_norm1)
        _copy(block.norm2, layer.layer_norm2)
        _copy_mlp(block.mlp, layer.mlp)
    cross = theirs.cross_attention_layer
    ours.cross_attn.latent.copy_(theirs.query_tokens)
    _copy(ours.cross_attn.q, cross.cross_attn.q_proj)
    _copy(ours.cross_attn.kv, cross.cross_attn.k_proj, cross.cross_attn.v_proj)
    _copy(ours.norm1, cross.layer_norm1)
    _copy(ours.norm2, cross.layer_norm2)
    _copy_mlp(ours.mlp, cross.mlp)


def _copy_mlp(ours: Any, theirs: Any) -> None:
    _copy(ours.fc1, theirs.fc1)
    _copy(ours.fc2, theirs.fc2)


def _copy(ours: Any, *theirs: Any) -> None:
    """Copy one layer, or several side by side."""
    ours.weight.copy_(torch.cat([layer.weight for layer in theirs]))
    ours.bias.copy_(torch.cat([layer.bias for layer in theirs]))
