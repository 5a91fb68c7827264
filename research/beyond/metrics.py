"""What tokens are compared by, other than the metrics of the core (`tome_core.metric.Metric`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.merge import accumulation_dtype
from tome_core.metric import BlockTensors, all_keys


def unit_keys(features: BlockTensors) -> Tensor:
    """Return the keys of all heads, each of length 1, ``(T, H * d)``.

    The cosine of two such is the mean of the cosines head by head.
    """
    keys = features.k.detach().to(accumulation_dtype(features.after.dtype))  # (T, H, d)
    return F.normalize(keys, dim=-1).flatten(1)


def keys_and_values(features: BlockTensors) -> Tensor:
    """Return the keys and the values of all heads, ``(T, 2 * H * d)``."""
    keys = all_keys(features)
    values = features.v.detach().to(keys.dtype).flatten(1)
    return torch.cat([keys, values], dim=1)
