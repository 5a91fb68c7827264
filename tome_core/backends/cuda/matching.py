"""Bipartite soft matching of all images of a buffer at once: `tome_core.matching.Bipartite` in two launches.

No similarity is ever written to memory but the best one of each token. What merges is found by
counting how many tokens come before each, so nothing is sorted, and every image merges as many
tokens as its two lengths say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tome_core.backends.cuda.placing import launch_place

STAGES = 1  # the keys of all heads, of several tiles at a time, would not fit into shared memory


@dataclass(frozen=True)
class Tiles:
    """How the comparison of tokens is cut.

    Attributes:
        of_a, of_b: tokens that are compared at once.
        warps: of a program.
        precision: of the products. ``tf32x3`` on tensor cores is as exact as float32 to 1e-6 (three
            products of the high and the low halves); ``ieee`` keeps whole rows in registers, so it
            wants tiles of 16.
    """

    of_a: int = 64
    of_b: int = 32
    warps: int = 4
    precision: str = "tf32x3"


NARROW = Tiles()
WIDE = Tiles(of_b=16, warps=8)  # registers are what is short


def choose_tiles(width: int) -> Tiles:
    """For heads of so many channels: the same for every batch, and so are the bits."""
    return NARROW if width <= 64 else WIDE


class Matched(NamedTuple):
    """Where the tokens of a buffer go, and by destination where they come from.

    Attributes:
        order: the tokens, int32 ``(T,)``, destination by destination: first the one that stays,
            then those that merge into it, by place.
        begins: where the tokens of each destination begin in ``order``, then T, int32 ``(T' +
            1,)``. Where there is room for more tokens, destinations past the last have none.
        dest: the place of each token in the buffer after merging, int32 ``(T,)``.
    """

    order: Tensor
    begins: Tensor
    dest: Tensor


@triton.jit
def unit_keys(
    keys,
    tokens,
    inside,
    ROW: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The mean over the heads of the keys of ``tokens (ROWS,)``, normalised: float32 ``(ROWS, BLOCK_WIDTH)``."""
    channels = tl.arange(0, BLOCK_WIDTH)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    keys += tokens.to(tl.int64)[:, None] * ROW + channels[None, :]
    total = tl.zeros((ROWS, BLOCK_WIDTH), tl.float32)
    for head in tl.static_range(HEADS):
        total += tl.load(keys + head * WIDTH, mask=mask, other=0.0).to(tl.float32)
    mean = total / HEADS
    norm = tl.sqrt_rn(tl.sum(mean * mean, axis=1))
    return mean / tl.maximum(norm, 1e-12)[:, None]


@triton.jit(do_not_specialize=["before", "after"])
def best_partner_kernel(
    keys,
    before,
    after,
    similarity,
    partner,
    PREFIX: tl.constexpr,
    ROW: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    TILE_A: tl.constexpr,
    TILE_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The most similar of B, and how similar it is, for a tile of A of one image; written as if A lay at its front.

    What is no number counts as more similar than anything, as it does in PyTorch's ``max`` and
    ``argsort``.
    """
    image = tl.program_id(1)
    first = tl.program_id(0) * TILE_A
    start = tl.load(before + image)
    length = tl.load(before + image + 1) - start
    left = tl.load(after + image + 1) - tl.load(after + image)
    first_a = PREFIX + PREFIX % 2
    first_b = PREFIX + 1 - PREFIX % 2
    of_a = (length - first_a + 1) // 2
    of_b = (length - first_b + 1) // 2
    if (left < length) & (first < of_a):
        own = first + tl.arange(0, TILE_A)
        inside = own < of_a
        a = unit_keys(
            keys, start + first_a + 2 * own, inside, ROW, HEADS, WIDTH, BLOCK_WIDTH, TILE_A
        )
        best = tl.full((TILE_A,), float("-inf"), tl.float32)
        best_of = tl.zeros((TILE_A,), tl.int32)
        for begin in range(0, of_b, TILE_B):
            other = begin + tl.arange(0, TILE_B)
            there = other < of_b
            b = unit_keys(
                keys, start + first_b + 2 * other, there, ROW, HEADS, WIDTH, BLOCK_WIDTH, TILE_B
            )
            scores = tl.dot(a, tl.trans(b), input_precision=PRECISION)
            scores = tl.where(scores == scores, scores, float("inf"))
            scores = tl.where(there[None, :], scores, float("-inf"))
            top, index = tl.max(scores, axis=1, return_indices=True)
            best_of = tl.where(top > best, begin + index.to(tl.int32), best_of)
            best = tl.maximum(top, best)
        tl.store(similarity + start + own, best, mask=inside)
        tl.store(partner + start + own, best_of, mask=inside)


def constants(prefix: int, row: int, heads: int, width: int, tiles: Tiles) -> dict[str, object]:
    """What `best_partner_kernel` is compiled for: the model's numbers, and how the work is cut."""
    return {
        "PREFIX": prefix,
        "ROW": row,
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_WIDTH": max(triton.next_power_of_2(width), 16),
        "TILE_A": tiles.of_a,
        "TILE_B": tiles.of_b,
        "PRECISION": tiles.precision,
    }


def launch_match(
    keys: Tensor,
    before: Tensor,
    after: Tensor,
    longest: int,
    after_total: int,
    prefix: int,
    tiles: Tiles | None = None,
) -> Matched:
    """As `match`, without the operator around it, and with any tiles."""
    tokens, heads, width = keys.shape
    images = len(before) - 1
    tiles = tiles or choose_tiles(width)
    order = before.new_empty(tokens)
    begins = before.new_empty(after_total + 1)
    dest = before.new_empty(tokens)
    partner = before.new_empty(tokens)
    similarity = before.new_empty(tokens, dtype=torch.float32)
    most = max((longest - prefix + 1) // 2, 1)  # of A, and of B
    best_partner_kernel[(-(-most // tiles.of_a), images)](
        keys,
        before,
        after,
        similarity,
        partner,
        **constants(prefix, keys.stride(0), heads, width, tiles),
        num_warps=tiles.warps,
        num_stages=STAGES,
    )
    launch_place(similarity, partner, before, after, order, begins, dest, most, prefix)
    return Matched(order, begins, dest)


def match(
    keys: Tensor, before: Tensor, after: Tensor, longest: int, after_total: int, prefix: int
) -> Matched:
    """Match the tokens of each image as `tome_core.matching.Bipartite` does, by the mean of their keys.

    Args:
        keys: of all tokens, ``(T, heads, width)``, such that
            `tome_core.backends.cuda.attention.lies_in_rows`.
        before, after: where each image begins, then how many tokens there are, int32 ``(images +
            1,)``, before and after merging. Each image merges as many as its lengths differ by: at
            most half of what is no prefix token.
        longest: tokens of the longest image before merging, or any number above. A kernel is
            compiled for it, rounded up to a power of two: what is the same in all blocks has
            nothing to compile later.
        after_total: T', the last number of ``after``, or any number above.
        prefix: tokens at the front of each image that never merge.

    An image that merges nothing keeps its order. What an image gets does not depend on who shares
    the batch.
    """
    return Matched(*_operator(keys, before, after, longest, after_total, prefix))


_operator = torch.library.custom_op(
    "tome::match",
    launch_match,
    mutates_args=(),
    schema=(
        "(Tensor keys, Tensor before, Tensor after, SymInt longest, SymInt after_total, int prefix)"
        " -> (Tensor, Tensor, Tensor)"
    ),
)


@_operator.register_fake
def _(
    keys: Tensor, before: Tensor, after: Tensor, longest: int, after_total: int, prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = keys.shape[0]
    return before.new_empty(tokens), before.new_empty(after_total + 1), before.new_empty(tokens)
