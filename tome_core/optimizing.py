"""`optimize`: the load-time transform of a patched model for inference. Same calls, same answers, faster."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from tome_core import native
from tome_core.attention import explicit_attention
from tome_core.model import MergedViT
from tome_core.native.strategy import Kernels


def optimize(model: MergedViT, dtype: torch.dtype | None = None, *, in_place: bool = False) -> MergedViT:
    """A copy of ``model`` for inference only, with weights of its own, made for the device that ``model`` is on.

    Args:
        dtype: of weights and activations; default the model's own. Metric, sizes and merged sums stay in at least
            float32.
        in_place: use ``model`` up instead, and the timm model that it was made from, so that weights are never there
            twice.

    The copy is in evaluation mode and needs no gradients. What it is made of is not the model's: LayerScale is folded
    into weights, and on a CPU linear layers are packed and layer norm, attention and merging run in the kernels of
    `tome_core.native` where these can be used. It stays on its device and in its dtype.
    """
    from tome_core.adapters.inference import fold_scales, replace_layers

    fast = (model if in_place else copy.deepcopy(model)).eval().requires_grad_(False)
    network = fast.adapter.network
    fold_scales(network)  # before weights are rounded
    if dtype is not None:
        fast = fast.to(dtype)
    parameter = next(fast.parameters())
    if parameter.device.type == "cpu":
        replace_layers(network, parameter.dtype)
        fast.eval()  # new layers begin in training mode
        strategy = Kernels() if native.supports(parameter.dtype) else fast.merging.strategy
        fast.merging = replace(fast.merging, attend=explicit_attention, strategy=strategy)
    return fast
