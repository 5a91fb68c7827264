"""What tokens may be compared by instead of their mean key (see `tome_core.metric.Metric`)."""

from __future__ import annotations

import torch
from torch import Tensor

from tome_core.merge import accumulation_dtype
from tome_core.metric import BlockTensors, mean_key


def token_before(features: BlockTensors) -> Tensor:
    """The token that entered the block, ``(T, D)``: the paper's X_pre."""
    return _exact(features.before, features)


def token_after(features: BlockTensors) -> Tensor:
    """The token after attention, ``(T, D)``: the paper's X."""
    return _exact(features.after, features)


def mean_query(features: BlockTensors) -> Tensor:
    """Queries averaged over the heads, ``(T, d)``."""
    return _exact(features.q, features).mean(dim=1)


def mean_value(features: BlockTensors) -> Tensor:
    """Values averaged over the heads, ``(T, d)``."""
    return _exact(features.v, features).mean(dim=1)


def queries_and_keys(features: BlockTensors) -> Tensor:
    """What attention can be computed from again, ``(T, 2, H, d)``."""
    return _exact(torch.stack([features.q, features.k], dim=1), features)


def all_queries_keys_and_values(features: BlockTensors) -> Tensor:
    """Queries, keys and values of all heads side by side, ``(T, 3 * H * d)``."""
    return _exact(torch.cat([features.q, features.k, features.v], dim=-1), features).flatten(1)


def keys_and_sizes(features: BlockTensors) -> Tensor:
    """The mean key, and after it the patches in each token, ``(T, d + 1)``."""
    keys = mean_key(features)
    sizes = features.sizes()
    if sizes is None:
        sizes = torch.ones_like(keys[:, 0])
    return torch.cat([keys, sizes.to(keys.dtype).unsqueeze(1)], dim=1)


def _exact(x: Tensor, features: BlockTensors) -> Tensor:
    return x.detach().to(accumulation_dtype(features.after.dtype))
