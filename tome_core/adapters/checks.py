"""Refusing what is not fully understood: every attribute and part of a module must be one that its adapter knows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from timm.layers import (
    AttentionPoolLatent,
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
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def require_type(module: nn.Module | None, allowed: tuple[type, ...], where: str) -> None:
    """Raise `UnsupportedModelError` unless ``module`` is of exactly one of the ``allowed`` types."""
    if type(module) not in allowed:
        names = ", ".join(sorted({kind.__name__ for kind in allowed}))
        raise UnsupportedModelError(
            f"{where} is a {_name(module)}, which is not supported; supported: {names}"
        )


def require_known(
    module: nn.Module, parts: Collection[str], attributes: Collection[str], where: str
) -> None:
    """Raise `UnsupportedModelError` if ``module`` has a part or attribute not listed, lacks a part, or has hooks.

    Args:
        parts: names of the sub-modules, all of which must be there (None counts as there).
        attributes: names of everything else that may be there.
    """
    children = set(module._modules)
    own = set(vars(module)) - _MODULE_ATTRIBUTES | set(module._parameters) | set(module._buffers)
    unknown = sorted((children - set(parts)) | (own - set(attributes) - set(parts)))
    if unknown:
        raise UnsupportedModelError(
            f"{where} ({_name(module)}) has {', '.join(unknown)}, which no adapter knows"
        )
    missing = sorted(part for part in parts if not hasattr(module, part))
    if missing:
        raise UnsupportedModelError(f"{where} ({_name(module)}) lacks {', '.join(missing)}")
    require_no_hooks(module, where)


def require_no_hooks(module: nn.Module, where: str) -> None:
    """Raise `UnsupportedModelError` if calling ``module`` would do more than its class says."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        raise UnsupportedModelError(
            f"{where} ({_name(module)}) has hooks, which merging would skip"
        )


def require_attention(attn: Any, head_dim: int, where: str) -> None:
    """Raise `UnsupportedModelError` unless attention is scaled, normalised and dropped as the adapters take it for."""
    if attn.scale != head_dim**-0.5:
        raise UnsupportedModelError(f"{where} scales by {attn.scale}, not by head_dim ** -0.5")
    require_type(attn.attn_drop, (nn.Dropout,), f"{where}.attn_drop")
    for name in ("q_norm", "k_norm", "norm", "sub_norm"):
        if hasattr(attn, name):
            require_type(getattr(attn, name), TOKENWISE_NORMS, f"{where}.{name}")


def require_block(block: Any, where: str) -> None:
    """Raise `UnsupportedModelError` unless what blocks of all families have is what the adapters take it for."""
    for name in ("norm1", "norm2"):
        require_type(getattr(block, name), TOKENWISE_NORMS, f"{where}.{name}")
    for name in ("drop_path1", "drop_path2"):
        require_type(getattr(block, name), (nn.Identity, DropPath), f"{where}.{name}")
    for name in ("ls1", "ls2"):
        if hasattr(block, name):
            require_type(getattr(block, name), (nn.Identity, LayerScale), f"{where}.{name}")
    require_type(block.mlp, TOKENWISE_MLPS, f"{where}.mlp")


def require_attention_pool(module: Any) -> None:
    """Raise `UnsupportedModelError` unless ``module`` pools by attention from latents over tokens in any order."""
    require_type(module, (AttentionPoolLatent,), "attn_pool")
    require_no_hooks(module, "attn_pool")
    if module.pos_embed is not None:
        raise UnsupportedModelError(
            "attn_pool has pos_embed: it tells tokens apart by their place, which merging changes"
        )


def linear_macs(module: nn.Module) -> int:
    """MACs per token of all linear layers (and patch convolutions) in ``module``: the size of their weights."""
    return sum(
        part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)
    )


def attention_pool_macs(module: Any) -> tuple[int, int]:
    """MACs of timm's attention pool: whatever it pools, and for each token that it reads."""
    per_latent = (
        linear_macs(module.q)
        + linear_macs(module.proj)
        + (linear_macs(module.mlp) if module.mlp else 0)
    )
    attention = 2 * module.num_heads * module.head_dim
    return module.latent_len * per_latent, linear_macs(module.kv) + module.latent_len * attention


def _name(module: nn.Module | None) -> str:
    return "missing part" if module is None else type(module).__name__
