"""`optimize`: the load-time transform of a patched model for inference. Same calls, same answers, faster."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.util import find_spec

import torch

from tome_core.attention import explicit_attention
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.strategy import Kernels
from tome_core.backends.padded import Offsets
from tome_core.model import Embedding, Encoder, MergedViT
from tome_core.ragged.packed import Merging, Strategy


def optimize(
    model: MergedViT,
    dtype: torch.dtype | None = None,
    *,
    in_place: bool = False,
    kernels: bool = True,
) -> MergedViT:
    """A copy of ``model`` for inference only, with weights of its own, made for the device that ``model`` is on.

    Args:
        dtype: of weights and activations; default the model's own. Metric, sizes and merged sums
            stay in at least float32.
        in_place: use ``model`` up instead, and the timm model that it was made from, so that
            weights are never there twice.
        kernels: on a GPU, use those of `tome_core.backends.cuda`.

    The copy is in evaluation mode and needs no gradients. What it is made of is not the model's:
    LayerScale is folded into weights; on a CPU linear layers are packed and layer norm, attention
    and merging run in the kernels of `tome_core.backends.cpu.kernels` where these can be used; on a
    GPU attention and merging run in those of `tome_core.backends.cuda`, and of a plain ViT the
    embedding and all that lies between matrix products too. It stays on its device and in its
    dtype. Hooks on its blocks and before them, and changes to those parts, may have no effect, and
    what hooks before the blocks were given may be overwritten.
    """
    from tome_core.adapters.inference import (
        fold_scales,
        join_biases,
        join_blocks,
        replace_convolutions,
        replace_layers,
    )

    fast = (model if in_place else copy.deepcopy(model)).eval().requires_grad_(False)
    network = fast.adapter.network
    fold_scales(network)  # before weights are rounded
    join_biases(network)
    if dtype is not None:
        fast = fast.to(dtype)
    parameter = next(fast.parameters())
    by_triton = kernels and has_triton(parameter.device)
    if parameter.device.type == "cpu":
        replace_layers(network, parameter.dtype)
        fast.eval()  # new layers begin in training mode
        fast.encoder = join_blocks(fast.adapter)
    elif parameter.device.type == "cuda":
        replace_convolutions(network)
        fast.eval()
        if by_triton:
            fast.embedding = embedding_for_gpu(fast)
            fast.encoder = encoder_for_gpu(fast)
    fast.merging = merging_for(fast.merging, parameter.device.type, parameter.dtype, by_triton)
    return fast


def embedding_for_gpu(model: MergedViT) -> Embedding | None:
    """What comes before the blocks of ``model``, by the kernels of `tome_core.backends.cuda`; None unless it is plain."""
    from tome_core.adapters.plain import embedding_weights
    from tome_core.backends.cuda.embedding import TritonEmbedding

    weights = embedding_weights(model.adapter)
    return TritonEmbedding(weights) if weights and weights.fits else None


def encoder_for_gpu(model: MergedViT) -> Encoder | None:
    """The blocks of ``model`` as one, by the kernels of `tome_core.backends.cuda`; None unless all are plain ones."""
    # Imported late: there are machines without Triton.
    from tome_core.adapters.plain import plain_weights
    from tome_core.backends.cuda.encoder import TritonEncoder, fit_together

    weights = plain_weights(model.adapter)
    return TritonEncoder(weights) if weights and fit_together(weights) else None


def merging_for(
    merging: Merging, device: str, dtype: torch.dtype, by_triton: bool = False
) -> Merging:
    """``merging`` with the attention and the strategy that are fastest on a type of ``device``; it merges the same.

    Args:
        by_triton: on a GPU, by the kernels of `tome_core.backends.cuda`.
    """
    if device == "cpu":
        if not kernels.supports(dtype):
            return replace(merging, attend=explicit_attention)
        return replace(
            merging, attend=explicit_attention, strategy=Kernels(), in_place=True, prune=True
        )
    if device == "cuda":
        return replace(merging, strategy=triton_strategy() if by_triton else Offsets(), prune=True)
    return merging


def triton_strategy() -> Strategy:
    """Attention and merging by the kernels of `tome_core.backends.cuda`."""
    from tome_core.backends.cuda.strategy import (
        TritonStrategy,  # late: there are machines without Triton
    )

    return TritonStrategy()


def has_triton(device: torch.device) -> bool:
    """Whether our kernels run on ``device``: an NVIDIA GPU, of compute capability 8.0 and up, where Triton is there."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and find_spec("triton") is not None
