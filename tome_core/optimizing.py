"""`optimize`: the load-time transform of a patched model for inference. Same calls, same answers, faster."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from tome_core.attention import explicit_attention
from tome_core.model import MergedViT


def optimize(model: MergedViT, dtype: torch.dtype | None = None) -> MergedViT:
    """A copy of ``model`` for inference only, with weights of its own.

    Args:
        dtype: of weights and activations; default the model's own. Metric, sizes and merged sums stay in at least
            float32.

    The copy is in evaluation mode, needs no gradients, and attends in the way that is fastest for its device.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    if dtype is not None:
        fast = fast.to(dtype)
    if next(fast.parameters()).device.type == "cpu":
        fast.merging = replace(fast.merging, attend=explicit_attention)
    return fast
