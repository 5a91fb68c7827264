"""How many kernels an operator launches on an NVIDIA GPU, by what PyTorch's sources do for it.

An operator that is not named here launches one, which holds for element-wise operators, reductions
(with a conversion of what they read, and with indices as ``max.dim`` gives), products, layer norm,
softmax, gather and attention. Views launch none, whatever they are called. Operators that PyTorch
makes of others are taken apart before they are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# What is known of an operator: a number, or a function of the tensors that it is given.
Launches = int | Callable[[Sequence[Tensor]], int]


def _scan(given: Sequence[Tensor]) -> int:
    # ScanKernels.cpp: one kernel. ReduceOps.cpp, impl_func_cum_ops: whole numbers of other types
    # are converted first.
    return 1 + (not given[0].is_floating_point() and given[0].dtype != torch.int64)


def _convolution(given: Sequence[Tensor]) -> int:
    # Convolution.cpp, cudnn: the bias is added to what cuDNN gives.
    return len(given) - 1


def _cat(given: Sequence[Tensor]) -> int:
    # Shape.cu, parallel_cat: so many inputs a kernel, of up to four dimensions and one type.
    return -(-len(given) // 128)


# By the operator's name, overloads alike. Operators of one's own that launch more than one kernel
# are added: ``LAUNCHES["tome::match"] = 2``.
LAUNCHES: dict[str, Launches] = {
    # Memory that nobody has written to yet, and names for what is there.
    "aten::empty": 0,
    "aten::empty_like": 0,
    "aten::empty_strided": 0,
    "aten::new_empty": 0,
    "aten::_unsafe_view": 0,
    "aten::lift_fresh": 0,
    # Sort.cpp, rows of up to 4,096: positions by arange and copy_, values by copy_, then one that
    # sorts in place.
    "aten::sort": 4,
    # A copy of what they write into, then what the operator with an underscore does
    # (TensorAdvancedIndexing.cpp, Indexing.cu). ``mean`` as a way to reduce would launch more.
    "aten::scatter": 2,
    "aten::scatter_add": 2,
    "aten::scatter_reduce": 2,
    "aten::index_add": 2,
    "aten::index_put": 2,
    "aten::masked_fill": 2,
    # PadNd.cpp: fill_ all, then copy_ the middle.
    "aten::constant_pad_nd": 2,
    "aten::cumsum": _scan,
    "aten::cat": _cat,
    "aten::convolution": _convolution,
    # Repeat.cu: the sums of the counts, then one that writes.
    "aten::repeat_interleave": 2,
    # tome_core/backends/cuda/matching.py: one that compares, one that ranks.
    "tome::match": 2,
    # tome_core/backends/cuda/pairs.py: one that compares, one that pairs and places.
    "tome::match_pairs": 2,
}

# Operators that are a linear layer or a part of one; a GELU in the epilogue of a product is in it.
LINEAR = {"aten::addmm", "aten::mm", "aten::convolution", "aten::_addmm_activation"}

# Bytes read by operators that read a part of what they are given only: a function of the tensors
# that they are given.
READS: dict[str, Callable[[Sequence[Tensor]], int]] = {}

# Operators that read nothing of their first tensor: they write over it, or look at its shape and
# dtype alone.
WITHOUT_READING = {
    *("aten::copy_", "aten::fill_", "aten::zero_"),
    *(
        "aten::new_zeros",
        "aten::new_ones",
        "aten::new_full",
        "aten::zeros_like",
        "aten::ones_like",
        "aten::full_like",
    ),
}


def total(parts: Sequence[Tensor]) -> int:
    """Bytes of ``parts``; what is expanded lies in memory once."""
    return sum(_numbers(tensor) * tensor.element_size() for tensor in parts)


def _numbers(tensor: Tensor) -> int:
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride or not size)


def read(name: str, given: Sequence[Tensor]) -> int:
    """Bytes that the operator ``name`` reads of the tensors that it is given."""
    if name in READS:
        return READS[name](given)
    return total(given[1:] if name in WITHOUT_READING else given)


def launches(name: str, given: Sequence[Tensor]) -> int:
    """Kernels that the operator ``name`` launches for the tensors that it is given."""
    known = LAUNCHES.get(name, 1)
    return known if isinstance(known, int) else known(given)
