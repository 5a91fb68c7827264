"""From images to the tokens of the first block: patches, a matrix product, and one pass that puts tokens together.

Three launches. A plain network takes six, each of them a pass over all pixels or all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from tome_core.backends.cuda.attention import DTYPES
from tome_core.backends.cuda.patches import launch_patches, patches
from tome_core.backends.cuda.share import SHARE, Share
from tome_core.pixels import Images, Pixels


@triton.jit
def assemble_kernel(
    embedded,
    table,
    out,
    FRONT: tl.constexpr,
    LENGTH: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """``NUMBERS`` of the ``LENGTH`` numbers that an image's tokens are, of which ``FRONT`` are of its prefix tokens."""
    CHUNKS: tl.constexpr = (LENGTH + NUMBERS - 1) // NUMBERS
    image = (tl.program_id(0) // CHUNKS).to(tl.int64)
    inner = tl.program_id(0) % CHUNKS * NUMBERS + tl.arange(0, NUMBERS)
    mask = inner < LENGTH
    values = tl.load(table + inner, mask=mask, other=0.0).to(tl.float32)
    source = embedded + image * (LENGTH - FRONT)
    values += tl.load(source + inner - FRONT, mask=mask & (inner >= FRONT), other=0.0).to(
        tl.float32
    )
    tl.store(out + image * LENGTH + inner, values.to(out.dtype.element_ty), mask=mask)


@cache
def constants(tokens: int, prefix: int, width: int, share: Share) -> dict[str, Any]:
    """What the kernel is compiled for: the model's numbers."""
    return {"FRONT": prefix * width, "LENGTH": tokens * width, "NUMBERS": share.numbers}


def launch_assemble(embedded: Tensor, table: Tensor, prefix: int, share: Share = SHARE) -> Tensor:
    """As `assemble`, without the operator around it, and with any share."""
    tokens, width = table.shape
    out = _empty(embedded, table, prefix)
    grid = (len(out) // tokens * -(-tokens * width // share.numbers),)
    assemble_kernel[grid](
        embedded, table, out, **constants(tokens, prefix, width, share), num_warps=share.warps
    )
    return out


def assemble(embedded: Tensor, table: Tensor, prefix: int) -> Tensor:
    """The tokens of each image, ``(B * (P + n), D)``: prefix tokens, then its patches with their positions added.

    Each sum is rounded once, as PyTorch does.

    Args:
        embedded: ``(B * n, D)``, contiguous.
        table: ``(P + n, D)``, contiguous, of the same dtype: the prefix tokens as they shall be,
            then the positions.
        prefix: P.
    """
    return _operator(embedded, table, prefix)


def _empty(embedded: Tensor, table: Tensor, prefix: int) -> Tensor:
    tokens, width = table.shape
    return embedded.new_empty(len(embedded) // (tokens - prefix) * tokens, width)


_operator = torch.library.custom_op(
    "tome::assemble",
    launch_assemble,
    mutates_args=(),
    schema="(Tensor embedded, Tensor table, int prefix) -> Tensor",
)


@_operator.register_fake
def _(embedded: Tensor, table: Tensor, prefix: int) -> Tensor:
    return _empty(embedded, table, prefix)


@dataclass(frozen=True)
class EmbeddingWeights:
    """An embedding by patches that do not overlap, learnt positions and prefix tokens.

    Attributes:
        weight, bias: of the convolution, ``(D, C, ph, pw)`` and ``(D,)``.
        table: ``(P + n, D)``: the prefix tokens, with their positions where they have some, then
            those of the patches.
        prefix: P.
        size: ``(H, W)`` of an image.
        norm: what follows; the identity where nothing does.
    """

    weight: Tensor
    bias: Tensor | None
    table: Tensor
    prefix: int
    size: tuple[int, int]
    norm: nn.Module

    @property
    def patch(self) -> tuple[int, int]:
        """``(ph, pw)``."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def fits(self) -> bool:
        """Whether the kernels can compute it: one dtype that they know, a position for every patch."""
        patches = (self.size[0] // self.patch[0]) * (self.size[1] // self.patch[1])
        same = self.weight.dtype == self.table.dtype and self.weight.device == self.table.device
        return same and self.table.dtype in DTYPES and len(self.table) == self.prefix + patches


class _Kernels(NamedTuple):
    patches: Any
    assemble: Any


_LAUNCHERS = _Kernels(launch_patches, launch_assemble)
_OPERATORS = _Kernels(patches, assemble)


class TritonEmbedding:
    """What comes before the blocks of a model (see `tome_core.model.Embedding`).

    Raises:
        ValueError: ``weights`` do not fit.
    """

    def __init__(self, weights: EmbeddingWeights) -> None:
        if not weights.fits:
            raise ValueError(
                "the embedding is not of one dtype that the kernels know, or has too few positions"
            )
        self.weights = weights
        # For images that are normalised already.
        channels = weights.weight.shape[1]
        self._one = torch.ones(channels, device=weights.table.device)
        self._zero = torch.zeros(channels, device=weights.table.device)

    def takes(self, images: Images) -> bool:
        """Whether it would embed ``images``: of the model's own size, where its weights are, and without gradients."""
        values = images.values if isinstance(images, Pixels) else images
        weight = self.weights.weight
        learns = torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad)
        here = values.device == weight.device and self.weights.fits
        fits = values.shape[1:] == (weight.shape[1], *self.weights.size)
        return here and fits and not learns and not torch.is_autocast_enabled(values.device.type)

    def __call__(self, images: Images) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, P + n, D)``."""
        weights = self.weights
        if isinstance(images, Pixels):
            values = images.values
            scale = images.scale
            shift = images.shift
        else:
            values = images
            scale = self._one
            shift = self._zero
        kernels = _LAUNCHERS if type(values) is Tensor else _OPERATORS
        rows = kernels.patches(
            values.contiguous(), scale, shift, weights.patch, weights.weight.dtype
        )
        embedded = F.linear(rows, weights.weight.flatten(1), weights.bias)
        tokens: Tensor = kernels.assemble(embedded, weights.table, weights.prefix)
        normed: Tensor = weights.norm(tokens.view(len(values), *weights.table.shape))
        return normed
