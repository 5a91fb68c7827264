"""`optimize`: prepare a patched model for fast inference, with the same calls and results."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import torch

from tome_core.attention import explicit_attention
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.strategy import KernelStrategy
from tome_core.backends.padded import PaddedStrategy
from tome_core.backends.reference import ReferenceStrategy
from tome_core.block import Encoder
from tome_core.execution import Execution, Strategy
from tome_core.model import Embedding, MergedViT

# The Triton kernels need an NVIDIA GPU of at least this compute capability: Ampere, the first
# generation with tensor cores for bfloat16.
_COMPUTE_CAPABILITY = (8, 0)


def optimize(
    model: MergedViT,
    dtype: torch.dtype | None = None,
    *,
    in_place: bool = False,
    kernels: bool = True,
) -> MergedViT:
    """Return a copy of ``model`` for inference, with its own weights, for the model's device.

    The copy is in evaluation mode and computes no gradients. It must stay on its device and in its
    dtype. Its modules differ from the model's:

    * LayerScale is folded into weights.
    * On a CPU, linear layers are packed. Layer norm, attention and merging run in the kernels of
      `tome_core.backends.cpu.kernels` where the processor supports them. With oneDNN linears
      (bfloat16 on AMX) there is no encoder: blocks run one by one with `KernelStrategy`.
    * On a GPU, attention and merging run in the kernels of `tome_core.backends.cuda`. For a plain
      ViT, so do the embedding and all operations between matrix products.

    Hooks on the blocks and before them may not run, nor changes to these parts take effect. Tensors
    that hooks before the blocks received may be overwritten.

    Args:
        model: a patched model.
        dtype: dtype of weights and activations; default the model's own. Metric, sizes and merged
            sums stay in at least float32.
        in_place: change ``model``, and the timm model that shares its weights, instead of a copy.
            The weights are then never in memory twice.
        kernels: on a GPU, use the kernels of `tome_core.backends.cuda`.
    """
    from tome_core.adapters.inference import fold_scales, join_biases

    fast = model if in_place else copy.deepcopy(model)
    fast = fast.eval().requires_grad_(False)
    network = fast.adapter.network
    fold_scales(network)  # before weights are rounded
    join_biases(network)
    if dtype is not None:
        fast = fast.to(dtype)
    parameter = next(fast.parameters())
    device = parameter.device
    use_triton = kernels and has_triton(device)
    if device.type == "cpu":
        _replace_modules_on_cpu(fast, parameter.dtype)
    elif device.type == "cuda":
        _replace_modules_on_gpu(fast, use_triton)
    fast.execution = execution_for(device.type, parameter.dtype, use_triton)
    return fast


def _replace_modules_on_cpu(model: MergedViT, dtype: torch.dtype) -> None:
    from tome_core.adapters.inference import join_blocks, replace_layers

    replace_layers(model.adapter.network, dtype)
    model.eval()  # new layers start in training mode
    model.encoder = join_blocks(model.adapter)


def _replace_modules_on_gpu(model: MergedViT, use_triton: bool) -> None:
    from tome_core.adapters.inference import replace_convolutions

    replace_convolutions(model.adapter.network)
    model.eval()  # new layers start in training mode
    if use_triton:
        model.embedding = embedding_for_gpu(model)
        model.encoder = encoder_for_gpu(model)


# Triton is not installed on every machine, so the functions below import its kernels late.


def embedding_for_gpu(model: MergedViT) -> Embedding | None:
    """Return the embedding of ``model`` as GPU kernels; None if they do not support it."""
    from tome_core.adapters.plain import embedding_weights
    from tome_core.backends.cuda.embedding import TritonEmbedding

    weights = embedding_weights(model.adapter)
    if weights is None or not weights.is_supported:
        return None
    return TritonEmbedding(weights)


def encoder_for_gpu(model: MergedViT) -> Encoder | None:
    """Return all blocks of ``model`` as GPU kernels; None if they do not support every block."""
    from tome_core.adapters.plain import plain_weights
    from tome_core.backends.cuda.encoder import TritonEncoder, are_supported

    weights = plain_weights(model.adapter)
    if not weights or not are_supported(weights):
        return None
    return TritonEncoder(weights)


def triton_strategy() -> Strategy:
    """Return the strategy that attends and merges with the kernels of `tome_core.backends.cuda`."""
    from tome_core.backends.cuda.strategy import TritonStrategy

    return TritonStrategy()


def execution_for(
    device: str,
    dtype: torch.dtype,
    use_triton: bool = False,
) -> Execution:
    """Return the fastest execution on a device.

    Args:
        device: type of the device.
        dtype: dtype of the activations.
        use_triton: on a GPU, use the kernels of `tome_core.backends.cuda`.
    """
    if device == "cpu" and kernels.supports(dtype):
        return Execution(KernelStrategy(explicit_attention), in_place=True, prune=True)
    if device == "cpu":
        return Execution(ReferenceStrategy(explicit_attention))
    if device == "cuda":
        strategy = triton_strategy() if use_triton else PaddedStrategy()
        return Execution(strategy, prune=True)
    return Execution(ReferenceStrategy())


def has_triton(device: torch.device) -> bool:
    """Return whether ``device`` runs the Triton kernels: a supported NVIDIA GPU with Triton."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    is_amd = torch.version.hip is not None
    if is_amd or torch.cuda.get_device_capability(device) < _COMPUTE_CAPABILITY:
        return False
    return find_spec("triton") is not None
