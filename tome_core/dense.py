"""Dense features of a merged backbone, for heads that need a vector at every place of the grid.

Such heads are those for segmentation and depth. A token that stands for several patches gives its
vector to each of them; a call may add what merging took from the patch (`tome_core.residuals`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from tome_core.merge import unmerge
from tome_core.ragged.context import BlockContext
from tome_core.residuals import add_residual

Format = Literal["NLC", "NCHW"]
Unmerging = Literal["copy", "residual"]


def resolve_layers(depth: int, layers: int | Sequence[int] | None) -> list[int]:
    """Return the sorted block indices that ``layers`` names, as timm's ``feature_take_indices``.

    Args:
        depth: number of blocks of the model.
        layers: block indices, where negative ones count from the end; or one number for the last so
            many blocks; or None for all blocks.

    Raises:
        ValueError: there is no such block, or no block is named.
    """
    if layers is None:
        return list(range(depth))
    if isinstance(layers, int):
        if not 1 <= layers <= depth:
            raise ValueError(
                f"layers={layers} asks for the last {layers} blocks of {depth}; name 1 to {depth}"
            )
        return list(range(depth - layers, depth))
    for layer in layers:
        if not -depth <= layer < depth:
            raise ValueError(
                f"there is no block {layer}; the model has {depth}, from 0 to {depth - 1}"
            )
    if not layers:
        raise ValueError("layers is empty; name the blocks to look at")
    return sorted({layer % depth for layer in layers})


def dense_features(context: BlockContext, norm: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Return the current vector of every input token, ``(B, N0, D)``, in the order of the batch.

    Args:
        context: the tokens before a block, with their sources, and with the residuals to add, if
            any.
        norm: a norm that works token by token, on ``(T, D)``; it follows the sum.
    """
    has_residuals = context.packed.residuals is not None
    tokens = context.packed.tokens  # (T, D)
    if norm is not None and not has_residuals:
        tokens = norm(tokens)  # cheaper before unmerging than after it
    features = _unmerge_groups(context, tokens)  # (B, N0, D)
    if norm is not None and has_residuals:
        normed = norm(features.flatten(0, 1))  # (B * N0, D)
        features = normed.unflatten(0, features.shape[:2])
    return context.plan.restore(features)


def _unmerge_groups(context: BlockContext, tokens: Tensor) -> Tensor:
    """Return ``tokens (T, D)``, unmerged, in the order of the buffer, ``(B, N0, D)``."""
    sources = context.packed.sources or ()
    residuals = context.packed.residuals or (None,) * len(sources)
    unmerged = []
    for (_, view), source, residual in zip(context.views(tokens), sources, residuals, strict=True):
        copies = unmerge(view, source)  # (images, N0, D)
        unmerged.append(add_residual(copies, residual))
    return torch.cat(unmerged)


def check_choices(output_fmt: str, unmerging: str) -> None:
    """Raise ValueError if there is no such format, or no such way to unmerge."""
    for name, value, choices in (
        ("output_fmt", output_fmt, get_args(Format)),
        ("unmerge", unmerging, get_args(Unmerging)),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not known; there are {', '.join(choices)}")


def to_format(
    patches: Tensor,
    grid: tuple[int, int],
    output_fmt: Format,
) -> Tensor:
    """Return ``patches (B, N, D)`` as they are, or for ``NCHW`` as maps ``(B, D, *grid)``.

    Raises:
        ValueError: there are too few patches for the grid, as after patch dropout.
    """
    if output_fmt == "NLC":
        return patches
    rows, columns = grid
    count = patches.shape[1]
    if count != rows * columns:
        raise ValueError(
            f"{count} patches do not fill a map of {rows} x {columns}; ask for output_fmt=NLC"
        )
    channels_first = patches.transpose(1, 2)  # (B, D, N)
    return channels_first.unflatten(2, grid).contiguous()
