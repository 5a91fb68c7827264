"""Proportional attention within each image, straight from where a linear layer left its numbers (paper, equation 1).

Weights are multiplied by the sizes of their keys in float32 inside the kernel, which is what
``log(size)`` on the logits does, so nothing is masked, padded or widened for it. Softmax runs over
blocks of keys with a running maximum, in float32, to the base 2, where the exponential is cheapest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that kernels know
INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class Tiles:
    """How the work on one head of one image is cut up.

    Attributes:
        queries: rows of a program.
        keys: those it looks at in one step. Sums follow it, so it must not depend on who shares the
            batch.
        rest: those in a step over what is left, masked; likewise. All steps are such where it
            equals ``keys``.
        warps: 16 queries for each on tensor cores, so that a row lies within one warp, and is
            summed alike in all.
        stages: steps whose keys and values are under way at a time.
    """

    queries: int
    keys: int
    rest: int
    warps: int
    stages: int


# Measured on an H200, with heads of 64 channels and 20 to 197 tokens: a third step under way pays
# where no sizes are read; 128 queries to a program never do.
WITH_SIZES = Tiles(queries=64, keys=64, rest=32, warps=4, stages=2)
WITHOUT_SIZES = Tiles(queries=64, keys=64, rest=32, warps=4, stages=3)
# Wider heads, and float32, which does not use tensor cores, are short of registers.
WIDE = Tiles(queries=64, keys=64, rest=64, warps=4, stages=2)
WIDEST_NARROW = 64
FLOAT32 = Tiles(queries=32, keys=16, rest=16, warps=4, stages=2)


def choose_tiles(width: int, dtype: torch.dtype, has_sizes: bool) -> Tiles:
    """For heads of one width: the same for every batch, and so are the bits."""
    if dtype == torch.float32:
        return FLOAT32
    if width > WIDEST_NARROW:
        return WIDE
    return WITH_SIZES if has_sizes else WITHOUT_SIZES


@triton.jit
def _product(a, b, acc, INTERPRETED: tl.constexpr):
    if INTERPRETED:  # where products of bfloat16 are wrong
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _attend_to(
    place,
    state,
    q,
    keys,
    values,
    sizes,
    count,
    K_ROW: tl.constexpr,
    V_ROW: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    MASKED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Give the highest logit, the sum of weights and that of weighted values with the keys at ``place`` counted in."""
    highest, total, acc = state
    inside = place < count
    real = tl.arange(0, q.shape[1])[None, :] < WIDTH
    mask = inside[:, None] & real if MASKED else real
    k = tl.load(keys + place[:, None] * K_ROW, mask=mask, other=0.0)
    v = tl.load(values + place[:, None] * V_ROW, mask=mask, other=0.0)
    logits = _product(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32), INTERPRETED)
    if MASKED:
        logits = tl.where(inside[None, :], logits, -float("inf"))
    higher = tl.maximum(highest, tl.max(logits, 1) * SCALE)
    weights = tl.exp2(logits * SCALE - higher[:, None])
    if HAS_SIZES:
        size = tl.load(sizes + place, mask=inside, other=0.0) if MASKED else tl.load(sizes + place)
        weights = weights * size[None, :]
    shrink = tl.exp2(highest - higher)
    total = total * shrink + tl.sum(weights, 1)
    acc = _product(weights.to(v.dtype), v, acc * shrink[:, None], INTERPRETED)
    return higher, total, acc


@triton.jit(do_not_specialize=["sizes", "starts", "blocks"])
def attention_kernel(
    queries,
    keys,
    values,
    sizes,
    starts,
    out,
    blocks,
    Q_ROW: tl.constexpr,
    K_ROW: tl.constexpr,
    V_ROW: tl.constexpr,
    PACKED: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    REST: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``QUERIES`` rows of one head of one image. ``SCALE`` is that of the logits, to the base 2.

    From one token to the next it is ``Q_ROW``, ``K_ROW`` and ``V_ROW`` numbers. If ``PACKED``, keys
    are right behind the queries of a token, and values behind these: then one address is enough for
    all, which leaves registers free.
    """
    block = tl.program_id(0) % blocks
    image = tl.program_id(0) // blocks // HEADS
    head = tl.program_id(0) // blocks % HEADS
    start = tl.load(starts + image)
    count = tl.load(starts + image + 1) - start
    if block * QUERIES >= count:
        return
    channels = tl.arange(0, PADDED)[None, :]
    # Within an image 32 bits are enough for a place, in a batch they are not.
    queries += start.to(tl.int64) * Q_ROW + head * WIDTH + channels
    if PACKED:
        keys = queries + HEADS * WIDTH
        values = keys + HEADS * WIDTH
    else:
        keys += start.to(tl.int64) * K_ROW + head * WIDTH + channels
        values += start.to(tl.int64) * V_ROW + head * WIDTH + channels
    sizes += start
    rows = block * QUERIES + tl.arange(0, QUERIES)[:, None]
    mask = (rows < count) & (channels < WIDTH)
    q = tl.load(queries + rows * Q_ROW, mask=mask, other=0.0)
    highest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, PADDED], tl.float32)
    full = 0
    if KEYS > REST:
        full = count // KEYS * KEYS
        for first in range(0, full, KEYS):
            place = first + tl.arange(0, KEYS)
            state = (highest, total, acc)
            highest, total, acc = _attend_to(
                place,
                state,
                q,
                keys,
                values,
                sizes,
                count,
                K_ROW,
                V_ROW,
                WIDTH,
                SCALE,
                HAS_SIZES,
                False,
                INTERPRETED,
            )
    for first in range(full, count, REST):
        place = first + tl.arange(0, REST)
        state = (highest, total, acc)
        highest, total, acc = _attend_to(
            place,
            state,
            q,
            keys,
            values,
            sizes,
            count,
            K_ROW,
            V_ROW,
            WIDTH,
            SCALE,
            HAS_SIZES,
            True,
            INTERPRETED,
        )
    there = out + start.to(tl.int64) * (HEADS * WIDTH) + head * WIDTH + channels
    tl.store(
        there + rows * (HEADS * WIDTH), (acc / total[:, None]).to(out.dtype.element_ty), mask=mask
    )


@cache
def constants(
    rows: tuple[int, int, int], packed: bool, width: int, heads: int, has_sizes: bool, tiles: Tiles
) -> dict[str, Any]:
    """What the kernel is compiled for: the model's numbers, how its layers leave ``rows``, and one of the few cuts."""
    return {
        "Q_ROW": rows[0],
        "K_ROW": rows[1],
        "V_ROW": rows[2],
        "PACKED": packed,
        "HEADS": heads,
        "WIDTH": width,
        "PADDED": max(triton.next_power_of_2(width), 16),
        "SCALE": width**-0.5 * math.log2(math.e),
        "HAS_SIZES": has_sizes,
        "QUERIES": tiles.queries,
        "KEYS": tiles.keys,
        "REST": tiles.rest,
        "INTERPRETED": INTERPRETED,
    }


def launch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Tensor | None,
    starts: Tensor,
    longest: int,
    tiles: Tiles | None = None,
) -> Tensor:
    """As `attention`, without the operator around it, and with any tiles."""
    tokens, heads, width = q.shape
    tiles = tiles or choose_tiles(width, q.dtype, sizes is not None)
    out = q.new_empty(tokens, heads * width)
    blocks = -(-longest // tiles.queries)
    grid = ((starts.shape[0] - 1) * heads * blocks,)
    rows = q.stride(0), k.stride(0), v.stride(0)
    attention_kernel[grid](
        q,
        k,
        v,
        starts if sizes is None else sizes,  # not read without sizes
        starts,
        out,
        blocks,
        **constants(rows, _are_packed(q, k, v), width, heads, sizes is not None, tiles),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


def attention(
    q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, starts: Tensor, longest: int
) -> Tensor:
    """``softmax(q k^T / sqrt(d) + log(size of the key)) v`` within each image, ``(T, H * d)``.

    Args:
        q, k, v: ``(T, H, d)``, in float32, bfloat16 or float16, such that `lies_in_rows`.
        sizes: of each token, float32 ``(T,)``; None if all are 1.
        starts: where each image begins, then T: int32 ``(images + 1,)``.
        longest: tokens of the longest image, or any number above.
    """
    return _operator(q, k, v, sizes, starts, longest)


def lies_in_rows(heads: Tensor) -> bool:
    """Whether ``(T, H, d)`` has each token's numbers side by side; tokens may be apart, as in packed ``(T, 3, H, d)``.

    Each distance between tokens is compiled for.
    """
    _, count, width = heads.shape
    return heads.stride(2) == 1 and (count == 1 or heads.stride(1) == width)


def unpack(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values, views ``(T, H, d)`` of packed ``(T, 3 * H * d)``."""
    return qkv.view(qkv.shape[0], 3, heads, -1).unbind(1)


def _are_packed(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether they lie as `unpack` gives them."""
    behind = q.shape[1] * q.shape[2] * q.element_size()
    one = q.stride(0) == k.stride(0) == v.stride(0)
    return one and k.data_ptr() - q.data_ptr() == v.data_ptr() - k.data_ptr() == behind


_operator = torch.library.custom_op(
    "tome::attention",
    launch_attention,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? sizes, Tensor starts, SymInt longest) -> Tensor",
)


@_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, starts: Tensor, longest: int
) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
