"""Dense features of a merged backbone, for heads that need a vector at every place of the grid.

Such heads are those for segmentation and depth. A token that stands for several patches gives its
vector to each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from tome_core.merge import unmerge
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import Plan

Format = Literal["NLC", "NCHW"]


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


def dense_features(
    states: Iterable[tuple[Plan, Packed]],
    layers: Sequence[int],
    norm: Callable[[Tensor], Tensor] | None,
) -> list[Tensor]:
    """Return the dense features ``(B, N0, D)`` after each of ``layers``.

    Args:
        states: the tokens before the first block, then those after each block. No block after the
            last of ``layers`` runs.
        layers: block indices in order.
        norm: a norm for the merged tokens ``(T, D)``; cheaper before unmerging than after it.
    """
    features = []
    for blocks_run, (plan, packed) in enumerate(states):
        last_block = blocks_run - 1
        if last_block in layers:
            tokens = packed.tokens  # (T, D)
            if norm is not None:
                tokens = norm(tokens)
            features.append(unmerge_batch(plan, tokens, packed.sources or (), blocks_run))
        if blocks_run > layers[-1]:
            break
    return features


def unmerge_batch(
    plan: Plan,
    tokens: Tensor,
    sources: Sequence[Tensor],
    blocks_run: int,
) -> Tensor:
    """Return the vector of every input token, ``(B, N0, D)``, in the order of the batch.

    Args:
        plan: the groups of the batch.
        tokens: the packed tokens ``(T, D)`` after some blocks.
        sources: for each group, the current position of each input token, ``(images, N0)``.
        blocks_run: the number of these blocks.
    """
    unmerged = []
    views = plan.views(tokens, blocks_run)
    for (_, group_tokens), source in zip(views, sources, strict=True):
        unmerged.append(unmerge(group_tokens, source))  # (images, N0, D)
    return plan.restore(torch.cat(unmerged))


def check_format(output_fmt: str) -> None:
    """Raise ValueError if there is no such format."""
    formats = get_args(Format)
    if output_fmt not in formats:
        raise ValueError(f"output_fmt={output_fmt!r} is not known; there are {', '.join(formats)}")


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
