"""Prepare timm's modules for inference: fold scales and biases, replace layers by faster ones.

All functions change the network in place. Its results stay the same up to rounding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import GluMlp, LayerScale, Mlp, SwiGLU
from torch import nn

from tome_core.adapters.plain_layers import are_identities, is_exact_gelu, is_plain_layer_norm
from tome_core.adapters.vit import ViTBlock
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.encoder import BlockLayers, KernelEncoder, are_supported
from tome_core.backends.cpu.layers import KernelLayerNorm, pack_patches, pack_tubelets
from tome_core.backends.cpu.linears import KernelLinear, PackedLinear, pack_linear
from tome_core.backends.patch_embedding import MatrixPatches
from tome_core.networks.overlapping_patches import OverlapPatchEmbed
from tome_core.networks.tubelets import TubeletProjection

_MLPS = (Mlp, GluMlp, SwiGLU)


@torch.no_grad()
def fold_scales(network: nn.Module) -> None:
    """Multiply LayerScale into the linear layer before it, in all blocks of ``network``."""
    for block in network.modules():
        attn: Any = getattr(block, "attn", None)
        mlp: Any = getattr(block, "mlp", None)
        _fold_scale(block, "ls1", getattr(attn, "proj", None))
        if type(mlp) in _MLPS:
            _fold_scale(block, "ls2", getattr(mlp, "fc2", None))


def _fold_scale(
    block: nn.Module,
    name: str,
    linear: Any,
) -> None:
    layer_scale: Any = getattr(block, name, None)
    if type(layer_scale) is not LayerScale or type(linear) is not nn.Linear:
        return
    gamma = layer_scale.gamma  # (D,)
    linear.weight.mul_(gamma[:, None])  # (D, hidden)
    if linear.bias is not None:
        linear.bias.mul_(gamma)
    setattr(block, name, nn.Identity())


@torch.no_grad()
def join_biases(network: nn.Module) -> None:
    """Turn the separate biases of queries and values (BEiT, EVA) into the bias of ``qkv``."""
    for module in network.modules():
        attn: Any = module
        has_separate_biases = getattr(attn, "q_bias", None) is not None
        qkv = getattr(attn, "qkv", None)
        if not has_separate_biases or type(qkv) is not nn.Linear:
            continue
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])  # (3 * H * d,)
        if qkv.bias is not None:
            bias += qkv.bias
        qkv.bias = nn.Parameter(bias, requires_grad=False)
        attn.q_bias = None


def replace_convolutions(network: nn.Module) -> None:
    """Replace patch embeddings by `MatrixPatches`."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            is_overlapping = type(parent) is OverlapPatchEmbed
            if type(layer) is nn.Conv2d and (is_overlapping or _is_patchwise(layer)):
                setattr(parent, name, MatrixPatches(layer))


def replace_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace plain layers by those of `tome_core.backends.cpu` that this processor supports."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            faster = _faster_layer(layer, dtype)
            if faster is not None:
                setattr(parent, name, faster)
        if type(parent) is Mlp:
            _fuse_gelu(parent)


def _faster_layer(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    if type(layer) is nn.Linear:
        return pack_linear(layer)
    if type(layer) is nn.Conv2d and _is_patchwise(layer):
        return pack_patches(layer)
    if type(layer) is TubeletProjection:
        return pack_tubelets(layer)
    if is_plain_layer_norm(layer) and kernels.supports(dtype):
        return KernelLayerNorm(cast(nn.LayerNorm, layer))
    return None


def _fuse_gelu(mlp: Any) -> None:
    """Let a packed linear layer apply the activation that follows it."""
    if isinstance(mlp.fc1, PackedLinear) and is_exact_gelu(mlp.act):
        mlp.fc1.gelu = True
        mlp.act = nn.Identity()


def _is_kernel_mlp(mlp: Any) -> bool:
    if type(mlp) is not Mlp or not are_identities(mlp.norm):
        return False
    linears_are_packed = isinstance(mlp.fc1, KernelLinear) and isinstance(mlp.fc2, KernelLinear)
    return linears_are_packed and mlp.fc1.gelu


def _is_patchwise(layer: nn.Conv2d) -> bool:
    patches_do_not_overlap = layer.kernel_size == layer.stride
    is_unpadded = layer.padding in ((0, 0), "valid")
    return patches_do_not_overlap and is_unpadded and layer.groups == 1


def join_blocks(adapter: Any) -> KernelEncoder | None:
    """Return all blocks of ``adapter`` as one encoder, after `replace_layers`.

    None unless all are plain blocks of one shape. With oneDNN linears (bfloat16 on AMX) there is no
    encoder either: blocks run one by one with `KernelStrategy`.
    """
    layers = []
    for block_adapter in adapter.blocks:
        block = block_adapter.block
        if type(block_adapter) is not ViTBlock or not _is_kernel_block(block):
            return None
        layers.append(
            BlockLayers(
                norm1=block.norm1,
                qkv=block.attn.qkv,
                proj=block.attn.proj,
                norm2=block.norm2,
                fc1=block.mlp.fc1,
                fc2=block.mlp.fc2,
                heads=block.attn.num_heads,
            )
        )
    if not are_supported(layers):
        return None
    return KernelEncoder(layers)


def _is_kernel_block(block: Any) -> bool:
    """Return whether ``block`` consists of kernel layers and nothing else."""
    attn = block.attn
    if getattr(attn, "gate", None) is not None or not _is_kernel_mlp(block.mlp):
        return False
    if not are_identities(block.ls1, block.ls2, attn.q_norm, attn.k_norm, attn.norm):
        return False
    kernel_types = [
        (block.norm1, KernelLayerNorm),
        (block.norm2, KernelLayerNorm),
        (attn.qkv, KernelLinear),
        (attn.proj, KernelLinear),
    ]
    return all(type(layer) is kernel_type for layer, kernel_type in kernel_types)
