"""From images to the tokens of the first block, in three launches.

They are: patches, a matrix product, and one pass that assembles tokens. A plain network needs six
launches, each of them a pass over all pixels or all tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from tome_core.backends.cuda.attention import DTYPES
from tome_core.backends.cuda.launch_config import DEFAULT_CONFIG, LaunchConfig
from tome_core.backends.cuda.patches import PatchGeometry, launch_patches, patches
from tome_core.pixels import Images, Pixels


@triton.jit
def assemble_kernel(
    embedded,
    table,
    out,
    PREFIX_ELEMENTS: tl.constexpr,
    IMAGE_ELEMENTS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Write ``ELEMENTS`` of the tokens of one image.

    All tokens of an image have ``IMAGE_ELEMENTS`` elements, its prefix tokens ``PREFIX_ELEMENTS``.
    """
    CHUNKS: tl.constexpr = (IMAGE_ELEMENTS + ELEMENTS - 1) // ELEMENTS
    image = (tl.program_id(0) // CHUNKS).to(tl.int64)
    element = tl.program_id(0) % CHUNKS * ELEMENTS + tl.arange(0, ELEMENTS)
    mask = element < IMAGE_ELEMENTS
    # Prefix tokens, or positions.
    values = tl.load(table + element, mask=mask, other=0.0).to(tl.float32)
    # Plus the embedded patches, which follow the prefix tokens.
    source = embedded + image * (IMAGE_ELEMENTS - PREFIX_ELEMENTS)
    is_patch = mask & (element >= PREFIX_ELEMENTS)
    added = tl.load(source + element - PREFIX_ELEMENTS, mask=is_patch, other=0.0)
    values += added.to(tl.float32)
    tl.store(out + image * IMAGE_ELEMENTS + element, values.to(out.dtype.element_ty), mask=mask)


@cache
def constants(tokens: int, prefix: int, width: int, config: LaunchConfig) -> dict[str, Any]:
    """Return the constants that the kernel is compiled for; they depend on the model alone."""
    return {
        "PREFIX_ELEMENTS": prefix * width,
        "IMAGE_ELEMENTS": tokens * width,
        "ELEMENTS": config.elements,
    }


def launch_assemble(
    embedded: Tensor,
    table: Tensor,
    prefix: int,
    config: LaunchConfig = DEFAULT_CONFIG,
) -> Tensor:
    """Do the same as `assemble` without the operator around it, and with any configuration."""
    tokens, width = table.shape
    out = _empty(embedded, table, prefix)
    images = len(out) // tokens
    chunks = -(-tokens * width // config.elements)
    assemble_kernel[(images * chunks,)](
        embedded,
        table,
        out,
        **constants(tokens, prefix, width, config),
        num_warps=config.warps,
    )
    return out


def assemble(embedded: Tensor, table: Tensor, prefix: int) -> Tensor:
    """Return the tokens of each image, ``(B * (P + n), D)``.

    They are the prefix tokens, then the patches with their positions added. Each sum is rounded
    once, as PyTorch does.

    Args:
        embedded: the patches, ``(B * n, D)``, contiguous.
        table: ``(P + n, D)``, contiguous, of the same dtype: the prefix tokens as they leave the
            embedding, then the positions.
        prefix: P.
    """
    return _operator(embedded, table, prefix)


def _empty(embedded: Tensor, table: Tensor, prefix: int) -> Tensor:
    """The uninitialised result of `assemble`."""
    tokens, width = table.shape
    images = len(embedded) // (tokens - prefix)
    return embedded.new_empty(images * tokens, width)


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
    """An embedding by patches that do not overlap, with learnt positions and prefix tokens.

    Attributes:
        weight, bias: of the convolution, ``(D, C, ph, pw)`` and ``(D,)``; the weight of a
            convolution over frames is ``(D, C, depth, ph, pw)``.
        table: ``(P + n, D)``: the prefix tokens, with their positions added if they have any, then
            the positions of the patches.
        prefix: P.
        size: ``(H, W)`` of an image.
        norm: the layer after the embedding; the identity if there is none.
        frames: that lie below each other in an image: 1 unless it is a clip.
    """

    weight: Tensor
    bias: Tensor | None
    table: Tensor
    prefix: int
    size: tuple[int, int]
    norm: nn.Module
    frames: int = 1

    @property
    def geometry(self) -> PatchGeometry:
        """What a patch is, from which one token is made."""
        *depth, height, width = self.weight.shape[2:]
        return PatchGeometry(height, width, math.prod(depth), self.frames)

    @property
    def is_supported(self) -> bool:
        """Whether the kernels can compute it: one supported dtype, a position for every patch."""
        patch_count = math.prod(self.geometry.counts(*self.size))
        if self.weight.dtype != self.table.dtype or self.weight.device != self.table.device:
            return False
        return self.table.dtype in DTYPES and len(self.table) == self.prefix + patch_count


class _Kernels(NamedTuple):
    patches: Any
    assemble: Any


_LAUNCHERS = _Kernels(launch_patches, launch_assemble)
_OPERATORS = _Kernels(patches, assemble)


class TritonEmbedding:
    """The embedding of a model before its blocks (see `tome_core.model.Embedding`).

    Raises:
        ValueError: the kernels cannot compute it.
    """

    def __init__(self, weights: EmbeddingWeights) -> None:
        if not weights.is_supported:
            raise ValueError(
                "the embedding is not of one dtype that the kernels know, or has too few positions"
            )
        self.weights = weights
        # Scale and shift of images that are normalised already.
        channels = weights.weight.shape[1]
        self._one = torch.ones(channels, device=weights.table.device)
        self._zero = torch.zeros(channels, device=weights.table.device)

    def supports(self, images: Images) -> bool:
        """Return whether it can embed ``images``.

        They must have the model's own size and lie on its device, and need no gradients.
        """
        values = images.values if isinstance(images, Pixels) else images
        weight = self.weights.weight
        if values.device != weight.device or not self.weights.is_supported:
            return False
        if values.shape[1:] != (weight.shape[1], *self.weights.size):
            return False
        if torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad):
            return False
        return not torch.is_autocast_enabled(values.device.type)

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
        # Launchers cost the host less; fake tensors need operators.
        kernels = _LAUNCHERS if type(values) is Tensor else _OPERATORS
        rows = kernels.patches(
            values.contiguous(), scale, shift, weights.geometry, weights.weight.dtype
        )  # (B * n, C * depth * ph * pw)
        embedded = F.linear(rows, weights.weight.flatten(1), weights.bias)
        tokens: Tensor = kernels.assemble(embedded, weights.table, weights.prefix)
        by_image = tokens.view(len(values), *weights.table.shape)
        normed: Tensor = weights.norm(by_image)
        return normed
