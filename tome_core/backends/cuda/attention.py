"""Proportional attention within each image of a packed buffer (paper, equation 1).

Queries, keys and values are read in the layout in which the linear layer wrote them. Inside the
kernel the softmax weights are multiplied by the sizes of their keys in float32. That equals adding
``log(size)`` to the logits, so no mask, padding or wider dtype is needed. Softmax runs over blocks
of keys with a running maximum, in float32, to the base 2, for which the exponential is cheapest.
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

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that the kernels support
INTERPRETED = bool(triton.knobs.runtime.interpret)
_SMALLEST_WIDTH = 16  # of a matrix product in Triton


@dataclass(frozen=True)
class Tiles:
    """How the work on one head of one image is divided.

    Attributes:
        queries: rows of one program.
        keys: keys in one step. The order of the sums depends on it, so it must not depend on the
            other images of the batch.
        rest: keys in one masked step, for the keys that do not fill a step; it must not depend on
            the batch either. If it equals ``keys``, all steps are masked.
        warps: one for each 16 queries on tensor cores. A row then lies within one warp, and all
            rows are summed in the same order.
        stages: the number of steps whose keys and values are loaded at the same time.
    """

    queries: int
    keys: int
    rest: int
    warps: int
    stages: int


# Measured on an H200, with heads of 64 channels and 20 to 197 tokens: a third stage is faster only
# where no sizes are read; 128 queries for each program are never faster.
WITH_SIZES = Tiles(queries=64, keys=64, rest=32, warps=4, stages=2)
WITHOUT_SIZES = Tiles(queries=64, keys=64, rest=32, warps=4, stages=3)
# Wider heads, and float32, which does not use tensor cores, need more registers.
WIDE = Tiles(queries=64, keys=64, rest=64, warps=4, stages=2)
MAX_NARROW_WIDTH = 64  # the most channels of a head that the tiles above were measured with
FLOAT32 = Tiles(queries=32, keys=16, rest=16, warps=4, stages=2)


def choose_tiles(width: int, dtype: torch.dtype, has_sizes: bool) -> Tiles:
    """Return the tiles for heads of ``width`` channels; the same for every batch."""
    if dtype == torch.float32:
        return FLOAT32
    if width > MAX_NARROW_WIDTH:
        return WIDE
    return WITH_SIZES if has_sizes else WITHOUT_SIZES


@triton.jit
def _product(a, b, acc, INTERPRETED: tl.constexpr):
    """Return ``acc + a @ b`` in float32."""
    if INTERPRETED:  # the interpreter's products of bfloat16 are wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
        return acc + tl.dot(a, b, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _attend_to(
    positions,
    state,
    q,
    keys,
    values,
    sizes,
    length,
    K_ROW: tl.constexpr,
    V_ROW: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    MASKED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One step of the softmax: add the keys at ``positions`` of the image to the running sums.

    ``state`` holds, for each query, the highest logit, the sum of weights ``total`` and the sum of
    weighted values ``acc``. Returns the new state.
    """
    highest, total, acc = state
    # Load the keys and values of the step; past the end of the image there are none.
    inside = positions < length
    is_channel = tl.arange(0, q.shape[1])[None, :] < WIDTH
    mask = inside[:, None] & is_channel if MASKED else is_channel
    k = tl.load(keys + positions[:, None] * K_ROW, mask=mask, other=0.0)
    v = tl.load(values + positions[:, None] * V_ROW, mask=mask, other=0.0)
    # Logits: q k^T.
    logits = _product(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32), INTERPRETED)
    if MASKED:
        logits = tl.where(inside[None, :], logits, -float("inf"))
    # Weights relative to the new maximum, times the sizes of the keys.
    new_highest = tl.maximum(highest, tl.max(logits, 1) * SCALE)
    weights = tl.exp2(logits * SCALE - new_highest[:, None])
    if HAS_SIZES:
        size = (
            tl.load(sizes + positions, mask=inside, other=0.0)
            if MASKED
            else tl.load(sizes + positions)
        )
        weights = weights * size[None, :]
    # Rescale the sums so far to the new maximum, and add those of this step.
    correction = tl.exp2(highest - new_highest)
    total = total * correction + tl.sum(weights, 1)
    acc = _product(weights.to(v.dtype), v, acc * correction[:, None], INTERPRETED)
    return new_highest, total, acc


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
    """Attention of ``QUERIES`` rows of one head of one image.

    ``SCALE`` is that of the logits, to the base 2. ``Q_ROW``, ``K_ROW`` and ``V_ROW`` are the
    strides between tokens. If ``PACKED``, the keys of a token follow its queries and its values
    follow its keys in memory: one address then serves for all three, which saves registers.
    """
    # Which rows of which head of which image.
    # (The order of these statements and of those at the end decides how many registers the
    # compiler needs: `test_compiling.py` checks that none spills.)
    block = tl.program_id(0) % blocks
    image = tl.program_id(0) // blocks // HEADS
    head = tl.program_id(0) // blocks % HEADS
    start = tl.load(starts + image)
    length = tl.load(starts + image + 1) - start
    if block * QUERIES >= length:
        return
    # Addresses. 32 bits hold a position within an image, but not one within a batch.
    channels = tl.arange(0, PADDED)[None, :]
    queries += start.to(tl.int64) * Q_ROW + head * WIDTH + channels
    if PACKED:
        keys = queries + HEADS * WIDTH
        values = keys + HEADS * WIDTH
    else:
        keys += start.to(tl.int64) * K_ROW + head * WIDTH + channels
        values += start.to(tl.int64) * V_ROW + head * WIDTH + channels
    sizes += start
    # Load the queries.
    rows = block * QUERIES + tl.arange(0, QUERIES)[:, None]
    mask = (rows < length) & (channels < WIDTH)
    q = tl.load(queries + rows * Q_ROW, mask=mask, other=0.0)
    # Softmax with a running maximum, first over the full steps, then over the rest.
    highest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, PADDED], tl.float32)
    full = 0
    if KEYS > REST:
        full = length // KEYS * KEYS
        for first in range(0, full, KEYS):
            state = (highest, total, acc)
            highest, total, acc = _attend_to(
                first + tl.arange(0, KEYS),
                state,
                q,
                keys,
                values,
                sizes,
                length,
                K_ROW,
                V_ROW,
                WIDTH,
                SCALE,
                HAS_SIZES,
                False,  # MASKED
                INTERPRETED,
            )
    for first in range(full, length, REST):
        state = (highest, total, acc)
        highest, total, acc = _attend_to(
            first + tl.arange(0, REST),
            state,
            q,
            keys,
            values,
            sizes,
            length,
            K_ROW,
            V_ROW,
            WIDTH,
            SCALE,
            HAS_SIZES,
            True,  # MASKED
            INTERPRETED,
        )
    # Divide by the sum of weights, and write.
    addresses = out + start.to(tl.int64) * (HEADS * WIDTH) + head * WIDTH + channels
    tl.store(
        addresses + rows * (HEADS * WIDTH),
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=mask,
    )


@cache
def constants(
    strides: tuple[int, int, int],
    packed: bool,
    width: int,
    heads: int,
    has_sizes: bool,
    tiles: Tiles,
) -> dict[str, Any]:
    """Return the constants that the kernel is compiled for; the batch has no part in them.

    ``strides`` are those between the tokens of queries, keys and values.
    """
    q_row, k_row, v_row = strides
    return {
        "Q_ROW": q_row,
        "K_ROW": k_row,
        "V_ROW": v_row,
        "PACKED": packed,
        "HEADS": heads,
        "WIDTH": width,
        "PADDED": max(triton.next_power_of_2(width), _SMALLEST_WIDTH),
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
    """Do the same as `attention` without the operator around it, and with any tiles."""
    tokens, heads, width = q.shape
    has_sizes = sizes is not None
    tiles = tiles or choose_tiles(width, q.dtype, has_sizes)
    out = q.new_empty(tokens, heads * width)
    images = starts.shape[0] - 1
    blocks = -(-longest // tiles.queries)
    strides = q.stride(0), k.stride(0), v.stride(0)
    packed = _are_packed(q, k, v)
    attention_kernel[(images * heads * blocks,)](
        q,
        k,
        v,
        starts if sizes is None else sizes,  # not read without sizes
        starts,
        out,
        blocks,
        **constants(strides, packed, width, heads, has_sizes, tiles),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Tensor | None,
    starts: Tensor,
    longest: int,
) -> Tensor:
    """``softmax(q k^T / sqrt(d) + log(size of the key)) v`` within each image, ``(T, H * d)``.

    Args:
        q, k, v: ``(T, H, d)``, in float32, bfloat16 or float16, that `has_dense_heads`.
        sizes: of each token, float32 ``(T,)``; None if all are 1.
        starts: where each image begins, then T: int32 ``(images + 1,)``.
        longest: the tokens of the longest image, or an upper bound.
    """
    return _operator(q, k, v, sizes, starts, longest)


def has_dense_heads(x: Tensor) -> bool:
    """Return whether the heads of each token of ``x (T, H, d)`` are adjacent in memory.

    Tokens may be apart, as in packed ``(T, 3, H, d)``. The kernels are compiled for each distance.
    """
    _, heads, width = x.shape
    return x.stride(2) == 1 and (heads == 1 or x.stride(1) == width)


def unpack(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Return queries, keys and values, views ``(T, H, d)`` of packed ``(T, 3 * H * d)``."""
    by_head = qkv.view(qkv.shape[0], 3, heads, -1)
    return by_head.unbind(1)


def _are_packed(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether they lie in memory as `unpack` returns them."""
    if not q.stride(0) == k.stride(0) == v.stride(0):
        return False
    _, heads, width = q.shape
    distance = heads * width * q.element_size()
    keys_follow = k.data_ptr() - q.data_ptr() == distance
    values_follow = v.data_ptr() - k.data_ptr() == distance
    return keys_follow and values_follow


_operator = torch.library.custom_op(
    "tome::attention",
    launch_attention,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? sizes, Tensor starts, SymInt longest) -> Tensor",
)


@_operator.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Tensor | None,
    starts: Tensor,
    longest: int,
) -> Tensor:
    tokens, heads, width = q.shape
    return q.new_empty(tokens, heads * width)
