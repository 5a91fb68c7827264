"""Modules of timm made ready for inference: scales folded into weights, layers replaced by faster equal ones."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import GELU, GluMlp, LayerNorm, LayerScale, Mlp, SwiGLU
from torch import nn

from tome_core import native
from tome_core.layers import KernelLayerNorm, PackedLinear, PackedPatches, packs

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


def replace_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Put the layers of `tome_core.layers` in the place of plain ones, in place; only what works here is replaced."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            faster = _faster(parent, layer, dtype)
            if faster is not None:
                setattr(parent, name, faster)
        if type(parent) is Mlp and isinstance(parent.fc1, PackedLinear) and _is_gelu(parent.act):
            parent.fc1.gelu, parent.act = True, nn.Identity()


def _faster(parent: Any, layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    # Read by its weight where query and value have biases of their own, so it must stay what it is.
    if type(layer) is nn.Linear and packs(dtype) and getattr(parent, "q_bias", None) is None:
        return PackedLinear(layer)
    if type(layer) is nn.Conv2d and packs(dtype) and _is_patchwise(layer):
        return PackedPatches(layer)
    if isinstance(layer, nn.LayerNorm) and native.supports(dtype) and _is_kernel_norm(layer):
        return KernelLayerNorm(layer)
    return None


def _is_gelu(module: Any) -> bool:
    return type(module) in (nn.GELU, GELU) and getattr(module, "approximate", "none") == "none"


def _is_patchwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == layer.stride and layer.padding in ((0, 0), "valid") and layer.groups == 1


def _is_kernel_norm(norm: Any) -> bool:
    return (
        type(norm) in _LAYER_NORMS
        and norm.weight is not None
        and norm.bias is not None
        and len(norm.normalized_shape) == 1
    )
