"""Refusing what is not fully understood: every attribute and part of a module must be one that its adapter knows."""

from __future__ import annotations

from collections.abc import Collection

from timm.layers import LayerNorm, LayerNormFp32, RmsNorm, RmsNormFp32
from torch import nn

from tome_core.errors import UnsupportedModelError

TOKENWISE_NORMS = (nn.Identity, nn.LayerNorm, LayerNorm, LayerNormFp32, nn.RMSNorm, RmsNorm, RmsNormFp32)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def require_type(module: nn.Module | None, allowed: tuple[type, ...], where: str) -> None:
    """Raise `UnsupportedModelError` unless ``module`` is of exactly one of the ``allowed`` types."""
    if type(module) not in allowed:
        names = ", ".join(sorted({kind.__name__ for kind in allowed}))
        raise UnsupportedModelError(f"{where} is a {_name(module)}, which is not supported; supported: {names}")


def require_known(module: nn.Module, parts: Collection[str], attributes: Collection[str], where: str) -> None:
    """Raise `UnsupportedModelError` if ``module`` has a part or attribute not listed, lacks a part, or has hooks.

    Args:
        parts: names of the sub-modules, all of which must be there (None counts as there).
        attributes: names of everything else that may be there.
    """
    children = set(module._modules)
    own = set(vars(module)) - _MODULE_ATTRIBUTES | set(module._parameters) | set(module._buffers)
    unknown = sorted((children - set(parts)) | (own - set(attributes) - set(parts)))
    if unknown:
        raise UnsupportedModelError(f"{where} ({_name(module)}) has {', '.join(unknown)}, which no adapter knows")
    missing = sorted(part for part in parts if not hasattr(module, part))
    if missing:
        raise UnsupportedModelError(f"{where} ({_name(module)}) lacks {', '.join(missing)}")
    require_no_hooks(module, where)


def require_no_hooks(module: nn.Module, where: str) -> None:
    """Raise `UnsupportedModelError` if calling ``module`` would do more than its class says."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        raise UnsupportedModelError(f"{where} ({_name(module)}) has hooks, which merging would skip")


def linear_macs(module: nn.Module) -> int:
    """MACs per token of all linear layers (and patch convolutions) in ``module``: the size of their weights."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d))


def _name(module: nn.Module | None) -> str:
    return "missing part" if module is None else type(module).__name__
