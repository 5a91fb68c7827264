"""Dense features of a merged backbone, for heads that need a vector at every place: segmentation, depth.

A token that stands for several patches gives its vector to each of them, by the map of where every
patch went.
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


def pick_layers(depth: int, layers: int | Sequence[int] | None) -> list[int]:
    """The blocks that ``layers`` names of ``depth``, in order, each once; as timm's ``feature_take_indices``.

    Args:
        layers: numbers from 0, negative ones from the end; one number for the last so many; None
            for all.

    Raises:
        ValueError: there is no such block, or none is named.
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


def unmerged(
    states: Iterable[tuple[Plan, Packed]],
    layers: Sequence[int],
    norm: Callable[[Tensor], Tensor] | None,
) -> list[Tensor]:
    """The dense features ``(B, N0, D)`` after each of ``layers``, in order.

    Args:
        states: the tokens that enter the first block, then those after each block; taken as far as
            needed.
        norm: applied to the merged tokens ``(T, D)``, of which there are fewer.
    """
    found = []
    for depth, (plan, packed) in enumerate(states):
        if depth - 1 in layers:
            tokens = packed.tokens if norm is None else norm(packed.tokens)
            found.append(unmerge_batch(plan, tokens, packed.sources or (), depth))
        if depth > layers[-1]:
            break
    return found


def unmerge_batch(plan: Plan, tokens: Tensor, sources: Sequence[Tensor], depth: int) -> Tensor:
    """``(B, N0, D)`` from the buffer ``tokens`` after ``depth`` blocks: every input token gets its token's vector."""
    views = plan.views(tokens, depth)
    return plan.restore(
        torch.cat([unmerge(x, source) for (_, x), source in zip(views, sources, strict=True)])
    )


def check_format(output_fmt: str) -> None:
    """Raises `ValueError` if there is no such format."""
    if output_fmt not in get_args(Format):
        raise ValueError(
            f"output_fmt={output_fmt!r} is not known; there are {', '.join(get_args(Format))}"
        )


def as_format(patches: Tensor, grid: tuple[int, int], output_fmt: Format) -> Tensor:
    """``(B, N, D)`` as it is, or for ``NCHW`` as maps ``(B, D, *grid)``.

    Raises:
        ValueError: the patches do not fill the grid, as after patch dropout.
    """
    if output_fmt == "NLC":
        return patches
    rows, columns = grid
    if patches.shape[1] != rows * columns:
        raise ValueError(
            f"{patches.shape[1]} patches do not fill a map of {rows} x {columns}; ask for"
            " output_fmt=NLC"
        )
    return patches.transpose(1, 2).unflatten(2, grid).contiguous()
