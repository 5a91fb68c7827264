"""Which layers of timm are the plain variants that the kernels implement."""

from __future__ import annotations

from typing import Any

from timm.layers import GELU, LayerNorm
from torch import nn

_LAYER_NORMS = (nn.LayerNorm, LayerNorm)


def is_plain_layer_norm(module: Any) -> bool:
    """Return whether ``module`` is a layer norm over channels, with weight and bias."""
    if type(module) not in _LAYER_NORMS:
        return False
    is_affine = module.weight is not None and module.bias is not None
    return is_affine and len(module.normalized_shape) == 1


def is_exact_gelu(module: Any) -> bool:
    """Return whether ``module`` is GELU by erf, without approximation."""
    approximation = getattr(module, "approximate", "none")
    return type(module) in (nn.GELU, GELU) and approximation == "none"


def are_identities(*modules: Any) -> bool:
    """Return whether every one of ``modules`` is the identity."""
    return all(type(module) is nn.Identity for module in modules)
