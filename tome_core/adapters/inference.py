"""Modules of timm made ready for inference: scales and biases folded in, layers replaced by faster equal ones."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import GELU, GluMlp, LayerNorm, LayerScale, Mlp, SwiGLU
from torch import nn

from tome_core.adapters.vit import ViTBlock
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.encoder import BlockLayers, Encoder, fit_together
from tome_core.backends.cpu.layers import KernelLayerNorm, pack_patches
from tome_core.backends.cpu.linears import KernelLinear, KernelMlp, PackedLinear, pack_linear
from tome_core.backends.patch_embedding import MatrixPatches

_LAYER_NORMS = (nn.LayerNorm, LayerNorm)
_MLPS = (Mlp, GluMlp, SwiGLU)


@torch.no_grad()
def fold_scales(network: nn.Module) -> None:
    """Multiply LayerScale into the linear layer before it, in all blocks of ``network``, in place."""
    for block in network.modules():
        for scale, part, last in (("ls1", "attn", "proj"), ("ls2", "mlp", "fc2")):
            layer_scale: Any = getattr(block, scale, None)
            branch = getattr(block, part, None)
            linear = getattr(branch, last, None)
            if type(layer_scale) is not LayerScale or type(linear) is not nn.Linear:
                continue
            if part == "mlp" and type(branch) not in _MLPS:
                continue
            linear.weight.mul_(layer_scale.gamma[:, None])
            if linear.bias is not None:
                linear.bias.mul_(layer_scale.gamma)
            setattr(block, scale, nn.Identity())


@torch.no_grad()
def join_biases(network: nn.Module) -> None:
    """Make the biases that queries and values have of their own (BEiT, EVA) those of the layer itself, in place."""
    for module in network.modules():
        attn: Any = module
        if (
            getattr(attn, "q_bias", None) is None
            or type(getattr(attn, "qkv", None)) is not nn.Linear
        ):
            continue
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        if attn.qkv.bias is not None:
            bias += attn.qkv.bias
        attn.qkv.bias = nn.Parameter(bias, requires_grad=False)
        attn.q_bias = None


def replace_convolutions(network: nn.Module) -> None:
    """Put `MatrixPatches` in the place of patch embeddings whose patches do not overlap, in place."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and _is_patchwise(layer):
                setattr(parent, name, MatrixPatches(layer))


def replace_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Put the layers of `tome_core.backends.cpu.layers` and `linears` in the place of plain ones, where they work here, in place."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            faster = _faster(layer, dtype)
            if faster is not None:
                setattr(parent, name, faster)
        if type(parent) is Mlp and isinstance(parent.fc1, PackedLinear) and _is_gelu(parent.act):
            parent.fc1.gelu = True
            parent.act = nn.Identity()
    for parent in list(network.modules()):
        for name, mlp in list(parent.named_children()):
            if _is_kernel_mlp(mlp):
                fc1 = cast(KernelLinear, mlp.fc1)
                fc2 = cast(KernelLinear, mlp.fc2)
                setattr(parent, name, KernelMlp(fc1, fc2))


def join_blocks(adapter: Any) -> Encoder | None:
    """The blocks of ``adapter``, whose layers were replaced, as one; None unless all are plain blocks of one shape."""
    if not all(type(block) is ViTBlock and _is_plain(block.block) for block in adapter.blocks):
        return None
    layers = [
        BlockLayers(
            norm1=block.norm1,
            qkv=block.attn.qkv,
            proj=block.attn.proj,
            norm2=block.norm2,
            mlp=block.mlp,
            heads=block.attn.num_heads,
        )
        for block in (wrapped.block for wrapped in adapter.blocks)
    ]
    return Encoder(layers) if fit_together(layers) else None


def _is_plain(block: Any) -> bool:
    attn = block.attn
    layers = (block.norm1, KernelLayerNorm), (block.norm2, KernelLayerNorm), (block.mlp, KernelMlp)
    linears = (attn.qkv, KernelLinear), (attn.proj, KernelLinear)
    nothing = block.ls1, block.ls2, attn.q_norm, attn.k_norm, attn.norm
    return (
        all(type(layer) is kind for layer, kind in (*layers, *linears))
        and all(type(module) is nn.Identity for module in nothing)
        and getattr(attn, "gate", None) is None
    )


def _faster(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    if type(layer) is nn.Linear:
        return pack_linear(layer)
    if type(layer) is nn.Conv2d and _is_patchwise(layer):
        return pack_patches(layer)
    if isinstance(layer, nn.LayerNorm) and kernels.supports(dtype) and _is_kernel_norm(layer):
        return KernelLayerNorm(layer)
    return None


def _is_gelu(module: Any) -> bool:
    return type(module) in (nn.GELU, GELU) and getattr(module, "approximate", "none") == "none"


def _is_kernel_mlp(mlp: Any) -> bool:
    if type(mlp) is not Mlp or type(mlp.norm) is not nn.Identity:
        return False
    return isinstance(mlp.fc1, KernelLinear) and mlp.fc1.gelu and isinstance(mlp.fc2, KernelLinear)


def _is_patchwise(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == layer.stride
        and layer.padding in ((0, 0), "valid")
        and layer.groups == 1
    )


def _is_kernel_norm(norm: Any) -> bool:
    return (
        type(norm) in _LAYER_NORMS
        and norm.weight is not None
        and norm.bias is not None
        and len(norm.normalized_shape) == 1
    )
