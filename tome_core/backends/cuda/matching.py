"""Bipartite soft matching of all images of a packed buffer in two launches, four for long images.

The result is that of `tome_core.matching.Bipartite`. Of the similarities, only the highest of each
token is written to memory. The tokens that merge are found by counting how many tokens come before
each, so nothing is sorted, and every image merges as many tokens as its two lengths differ by.

The metric of long images is computed in a launch of its own, because each tile of A would compute
the metric of B again; so are the ranks (`placing`). The bits are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tome_core.backends.cuda.placing import launch_place
from tome_core.split import set_sizes

STAGES = 1  # the keys of all heads, of several tiles at a time, would not fit into shared memory
_MAX_NARROW_WIDTH = 64  # the most channels of a head whose keys leave registers for `NARROW`
LARGEST_FUSED_SET = 128  # the tokens of A up to which their tiles compute the metric of B again
METRIC_ROWS = 32
METRIC_WARPS = 4
_SMALLEST_WIDTH = 16  # of a matrix product in Triton


@dataclass(frozen=True)
class Tiles:
    """How the comparison of tokens is divided.

    Attributes:
        of_a, of_b: the tokens of A and of B that are compared in one step.
        warps: the warps of a program.
        precision: of the products. ``tf32x3`` runs on tensor cores and is as exact as float32 to
            1e-6 (three products of high and low halves). ``ieee`` keeps whole rows in registers,
            so it needs tiles of 16.
    """

    of_a: int = 64
    of_b: int = 32
    warps: int = 4
    precision: str = "tf32x3"


NARROW = Tiles()
WIDE = Tiles(of_b=16, warps=8)  # limited by registers


def choose_tiles(width: int) -> Tiles:
    """Return the tiles for heads of ``width`` channels; the same for every batch."""
    return NARROW if width <= _MAX_NARROW_WIDTH else WIDE


class PackedMatching(NamedTuple):
    """The destination of each token of a buffer, and the tokens that each destination joins.

    Attributes:
        order: the tokens, int32 ``(T,)``, sorted by destination. Each segment holds the token that
            stays, then those that merge into it, by position.
        segment_starts: where the segment of each destination begins in ``order``, then T, int32
            ``(T' + 1,)``. If there is room for more tokens, the destinations past the last have
            empty segments.
        dest: the position of each token in the buffer after merging, int32 ``(T,)``.
    """

    order: Tensor
    segment_starts: Tensor
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
    """Return the metric of ``tokens (ROWS,)``: the normalised mean of their keys over the heads.

    float32 ``(ROWS, BLOCK_WIDTH)``. Without ``HEADS``, ``keys`` are the metric already.
    """
    channels = tl.arange(0, BLOCK_WIDTH)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    keys += tokens.to(tl.int64)[:, None] * ROW + channels[None, :]
    if HEADS == 0:
        metric = tl.load(keys, mask=mask, other=0.0)
    else:
        total = tl.zeros((ROWS, BLOCK_WIDTH), tl.float32)
        for head in tl.static_range(HEADS):
            total += tl.load(keys + head * WIDTH, mask=mask, other=0.0).to(tl.float32)
        mean = total / HEADS
        norm = tl.sqrt_rn(tl.sum(mean * mean, axis=1))
        # 1e-12 is the eps of `F.normalize`, which `Bipartite` uses.
        metric = mean / tl.maximum(norm, 1e-12)[:, None]
    return metric


@triton.jit(do_not_specialize=["count"])
def metric_kernel(
    keys,
    metric,
    count,
    ROW: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the metric of all tokens, float32 ``(count, WIDTH)``, ``ROWS`` of them a program."""
    tokens = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = tokens < count
    rows = unit_keys(keys, tokens, inside, ROW, HEADS, WIDTH, BLOCK_WIDTH, ROWS)
    channels = tl.arange(0, BLOCK_WIDTH)
    metric += tokens.to(tl.int64)[:, None] * WIDTH + channels[None, :]
    tl.store(metric, rows, mask=inside[:, None] & (channels < WIDTH)[None, :])


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
    """Find the most similar token of B for each token of A, for one tile of A of one image.

    The results are written as if the tokens of A lay at the front of the image. NaN counts as more
    similar than any number, as in PyTorch's ``max`` and ``argsort``.
    Without ``HEADS``, ``keys`` are the metric.
    """
    image = tl.program_id(1)
    first = tl.program_id(0) * TILE_A
    start = tl.load(before + image)
    length = tl.load(before + image + 1) - start
    length_after = tl.load(after + image + 1) - tl.load(after + image)
    # Sets A and B alternate; prefix tokens are counted, but stay out of both.
    first_a = PREFIX + PREFIX % 2
    first_b = PREFIX + 1 - PREFIX % 2
    count_a = (length - first_a + 1) // 2
    count_b = (length - first_b + 1) // 2
    if (length_after < length) & (first < count_a):
        # The metric of the tile of A.
        in_a = first + tl.arange(0, TILE_A)
        inside_a = in_a < count_a
        tokens_a = start + first_a + 2 * in_a
        a = unit_keys(keys, tokens_a, inside_a, ROW, HEADS, WIDTH, BLOCK_WIDTH, TILE_A)
        best = tl.full((TILE_A,), float("-inf"), tl.float32)
        best_partner = tl.zeros((TILE_A,), tl.int32)
        for begin in range(0, count_b, TILE_B):
            # The metric of a tile of B.
            in_b = begin + tl.arange(0, TILE_B)
            inside_b = in_b < count_b
            tokens_b = start + first_b + 2 * in_b
            b = unit_keys(keys, tokens_b, inside_b, ROW, HEADS, WIDTH, BLOCK_WIDTH, TILE_B)
            # Cosine similarities of all pairs.
            scores = tl.dot(a, tl.trans(b), input_precision=PRECISION)
            scores = tl.where(scores == scores, scores, float("inf"))
            scores = tl.where(inside_b[None, :], scores, float("-inf"))
            # The best of this tile replaces the best so far if it is higher.
            highest, index = tl.max(scores, axis=1, return_indices=True)
            best_partner = tl.where(highest > best, begin + index.to(tl.int32), best_partner)
            best = tl.maximum(highest, best)
        tl.store(similarity + start + in_a, best, mask=inside_a)
        tl.store(partner + start + in_a, best_partner, mask=inside_a)


def constants(
    prefix: int,
    row_stride: int,
    heads: int,
    width: int,
    tiles: Tiles,
) -> dict[str, object]:
    """Return the constants that `best_partner_kernel` is compiled for.

    They depend on the model and on the stride between the keys of two tokens. Without ``heads`` the
    kernel reads the metric.
    """
    return {
        "PREFIX": prefix,
        "ROW": row_stride,
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_WIDTH": max(triton.next_power_of_2(width), _SMALLEST_WIDTH),
        "TILE_A": tiles.of_a,
        "TILE_B": tiles.of_b,
        "PRECISION": tiles.precision,
    }


def metric_constants(row_stride: int, heads: int, width: int) -> dict[str, object]:
    """Return the constants that `metric_kernel` is compiled for."""
    return {
        "ROW": row_stride,
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_WIDTH": max(triton.next_power_of_2(width), _SMALLEST_WIDTH),
        "ROWS": METRIC_ROWS,
    }


def launch_metric(keys: Tensor) -> Tensor:
    """Return the normalised mean over the heads of ``keys (T, H, d)``, float32 ``(T, d)``."""
    tokens, heads, width = keys.shape
    metric = keys.new_empty(tokens, width, dtype=torch.float32)
    metric_kernel[(triton.cdiv(tokens, METRIC_ROWS),)](
        keys,
        metric,
        tokens,
        **metric_constants(keys.stride(0), heads, width),
        num_warps=METRIC_WARPS,
    )
    return metric


def launch_match(
    keys: Tensor,
    before: Tensor,
    after: Tensor,
    longest: int,
    after_total: int,
    prefix: int,
    tiles: Tiles | None = None,
    separate_metric: bool | None = None,
) -> PackedMatching:
    """Do the same as `match` without the operator around it, and with any tiles.

    Args:
        separate_metric: whether the metric has a launch of its own; None: for long images.
    """
    tokens, heads, width = keys.shape
    images = len(before) - 1
    order = before.new_empty(tokens)
    segment_starts = before.new_empty(after_total + 1)
    dest = before.new_empty(tokens)
    partner = before.new_empty(tokens)
    similarity = before.new_empty(tokens, dtype=torch.float32)
    largest_set = max(*set_sizes(longest, prefix), 1)
    if separate_metric is None:
        separate_metric = largest_set > LARGEST_FUSED_SET
    if separate_metric:
        keys = launch_metric(keys)
        heads = 0
    tiles = tiles or choose_tiles(width)
    tiles_of_a = triton.cdiv(largest_set, tiles.of_a)
    best_partner_kernel[(tiles_of_a, images)](
        keys,
        before,
        after,
        similarity,
        partner,
        **constants(prefix, keys.stride(0), heads, width, tiles),
        num_warps=tiles.warps,
        num_stages=STAGES,
    )
    launch_place(
        similarity, partner, before, after, order, segment_starts, dest, largest_set, prefix
    )
    return PackedMatching(order, segment_starts, dest)


def match(
    keys: Tensor,
    before: Tensor,
    after: Tensor,
    longest: int,
    after_total: int,
    prefix: int,
) -> PackedMatching:
    """Match the tokens of each image by the mean of their keys, as `Bipartite` does.

    Args:
        keys: of all tokens, ``(T, H, d)``, that `has_dense_heads`.
        before, after: where each image begins before and after merging, then the number of tokens,
            int32 ``(images + 1,)``. Each image merges as many tokens as its lengths differ by: at
            most half of those that are not prefix tokens.
        longest: the tokens of the longest image before merging, or an upper bound. Long images have
            kernels of their own; pass the same for all blocks, so that few are compiled.
        after_total: T', the last number of ``after``, or an upper bound.
        prefix: tokens at the front of each image that never merge.

    An image that merges nothing keeps its order. The result for an image does not depend on the
    other images of the batch.
    """
    return PackedMatching(*_operator(keys, before, after, longest, after_total, prefix))


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
    keys: Tensor,
    before: Tensor,
    after: Tensor,
    longest: int,
    after_total: int,
    prefix: int,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = keys.shape[0]
    return before.new_empty(tokens), before.new_empty(after_total + 1), before.new_empty(tokens)
