"""Refuse models that are not fully understood: an adapter must know every part of a module."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from timm.layers import (
    DropPath,
    GluMlp,
    LayerNorm,
    LayerNormFp32,
    LayerScale,
    Mlp,
    RmsNorm,
    RmsNormFp32,
    SwiGLU,
)
from torch import nn

from tome_core.errors import UnsupportedModelError

TOKENWISE_NORMS = (
    nn.Identity,
    nn.LayerNorm,
    LayerNorm,
    LayerNormFp32,
    nn.RMSNorm,
    RmsNorm,
    RmsNormFp32,
)
TOKENWISE_MLPS = (Mlp, GluMlp, SwiGLU)
_ATTRIBUTES_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def require_type(
    module: nn.Module | None,
    allowed: tuple[type, ...],
    where: str,
) -> None:
    """Raise `UnsupportedModelError` unless the type of ``module`` is one of ``allowed``.

    A subclass is refused, since it may override anything.

    Args:
        module: the module to check.
        allowed: types that the adapter supports.
        where: path of the module in the model, for the message.
    """
    if type(module) in allowed:
        return
    names = sorted({module_type.__name__ for module_type in allowed})
    raise UnsupportedModelError(
        f"{where} is a {_type_name(module)}, which is not supported; supported: {', '.join(names)}"
    )


def require_known(
    module: nn.Module,
    children: Collection[str],
    attributes: Collection[str],
    where: str,
) -> None:
    """Raise `UnsupportedModelError` if ``module`` has unknown parts, lacks a part, or has hooks.

    Args:
        module: the module to check.
        children: names of its submodules. Each must exist, but may be None.
        attributes: names of all other attributes that may exist.
        where: path of the module in the model, for the message.
    """
    own_attributes = set(vars(module)) - _ATTRIBUTES_OF_EVERY_MODULE
    own_attributes |= set(module._parameters)
    own_attributes |= set(module._buffers)
    known_children = set(children)
    unknown_children = set(module._modules) - known_children
    unknown_attributes = own_attributes - set(attributes) - known_children
    unknown = sorted(unknown_children | unknown_attributes)
    if unknown:
        raise UnsupportedModelError(
            f"{where} ({_type_name(module)}) has {', '.join(unknown)}, which no adapter knows"
        )
    missing = sorted(name for name in children if not hasattr(module, name))
    if missing:
        raise UnsupportedModelError(f"{where} ({_type_name(module)}) lacks {', '.join(missing)}")
    require_no_hooks(module, where)


def require_no_hooks(module: nn.Module, where: str) -> None:
    """Raise `UnsupportedModelError` if a call of ``module`` would run hooks."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        raise UnsupportedModelError(
            f"{where} ({_type_name(module)}) has hooks, which merging would skip"
        )


def require_attention(
    attn: Any,
    head_dim: int,
    where: str,
) -> None:
    """Raise `UnsupportedModelError` unless scale, norms and dropout are those that adapters use."""
    if attn.scale != head_dim**-0.5:
        raise UnsupportedModelError(f"{where} scales by {attn.scale}, not by head_dim ** -0.5")
    require_type(attn.attn_drop, (nn.Dropout,), f"{where}.attn_drop")
    for name in ("q_norm", "k_norm", "norm", "sub_norm"):
        if hasattr(attn, name):
            require_type(getattr(attn, name), TOKENWISE_NORMS, f"{where}.{name}")


def require_block(block: Any, where: str) -> None:
    """Raise `UnsupportedModelError` unless the parts that all blocks have are of known types."""
    for name in ("norm1", "norm2"):
        require_type(getattr(block, name), TOKENWISE_NORMS, f"{where}.{name}")
    for name in ("drop_path1", "drop_path2"):
        require_type(getattr(block, name), (nn.Identity, DropPath), f"{where}.{name}")
    for name in ("ls1", "ls2"):
        if hasattr(block, name):
            require_type(getattr(block, name), (nn.Identity, LayerScale), f"{where}.{name}")
    require_type(block.mlp, TOKENWISE_MLPS, f"{where}.mlp")


def linear_macs(module: nn.Module) -> int:
    """Return the MACs per token of linear layers and patch convolutions: the size of weights."""
    total = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d):
            total += layer.weight.numel()
    return total


def _type_name(module: nn.Module | None) -> str:
    return "missing part" if module is None else type(module).__name__
