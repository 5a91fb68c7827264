"""The similarities of all pairs of tokens of each image of a packed buffer.

They are those of `tome_core.pairs`: cosines, or negative distances for the rule "nearest". Each
pair is computed once and written at both of its places.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tome_core.backends.cuda.attention import INTERPRETED

TILE = 64  # the tokens that are compared with as many others by one program
STEP = 64  # the channels that it reads at a time,
FLOAT32_STEP = 32  # fewer of float32, whose products take more registers
WARPS = 4
STAGES = 3


@triton.jit
def _multiply(a, b, acc, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """Return ``acc + a @ b.T`` in float32."""
    if INTERPRETED:  # the interpreter's products of bfloat16 are wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)


@triton.jit
def _squares(
    first,
    tokens,
    inside,
    ROW: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    """Return the squared lengths of the keys of ``tokens (TILE,)``, float32.

    It reads the keys again. If the loop of the products computed the squares as well, Triton would
    not keep the operands of products on tensor cores that are still running.
    """
    squares = tl.zeros((TILE,), tl.float32)
    for channel in range(0, WIDTH, STEP):
        channels = channel + tl.arange(0, STEP)
        key = tl.load(
            first + tokens.to(tl.int64)[:, None] * ROW + channels[None, :],
            mask=inside[:, None] & (channels < WIDTH)[None, :],
            other=0.0,
        ).to(tl.float32)
        squares += tl.sum(key * key, axis=1)
    return squares


@triton.jit
def _cosines(products, squares_lower, squares_higher):
    """Make cosines of ``products``; NaN becomes -2, below all others."""
    # 1e-12 is the eps of `F.normalize`, which `cosines` uses.
    scale_lower = 1.0 / tl.maximum(tl.sqrt_rn(squares_lower), 1e-12)
    scale_higher = 1.0 / tl.maximum(tl.sqrt_rn(squares_higher), 1e-12)
    cosines = products * (scale_lower[:, None] * scale_higher[None, :])
    return tl.where(cosines >= -2.0, cosines, -2.0)  # else it is NaN, or -inf


@triton.jit
def _negative_distances(products, squares_lower, squares_higher, LOWEST: tl.constexpr):
    """Make minus half of the squared distances of ``products``; NaN becomes ``LOWEST``."""
    both = squares_lower[:, None] * 0.5 + squares_higher[None, :] * 0.5
    distances = products - both
    return tl.where(distances >= LOWEST, distances, LOWEST)


@triton.jit(do_not_specialize=["before", "after"])
def similarity_kernel(
    keys,
    before,
    after,
    similarities,
    PREFIX: tl.constexpr,
    ROW: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BY_DISTANCE: tl.constexpr,
    LOWEST: tl.constexpr,
):
    """Write the similarities of two tiles of tokens of one image, at both places of a pair.

    That of a token with itself is -inf. An image has room for as many rows and columns as there are
    tokens in all of its tiles.
    """
    lower_tile = tl.program_id(0)
    higher_tile = tl.program_id(1)
    image = tl.program_id(2)
    start = tl.load(before + image)
    length = tl.load(before + image + 1) - start
    length_after = tl.load(after + image + 1) - tl.load(after + image)
    count = length - PREFIX
    is_inside = (lower_tile <= higher_tile) & (higher_tile * TILE < count)
    if (length_after < length) & is_inside:
        lower = lower_tile * TILE + tl.arange(0, TILE)
        higher = higher_tile * TILE + tl.arange(0, TILE)
        inside_lower = lower < count
        inside_higher = higher < count
        first = keys + (start + PREFIX).to(tl.int64) * ROW
        products = tl.zeros((TILE, TILE), tl.float32)
        for channel in range(0, WIDTH, STEP):
            channels = channel + tl.arange(0, STEP)
            is_channel = (channels < WIDTH)[None, :]
            a = tl.load(
                first + lower.to(tl.int64)[:, None] * ROW + channels[None, :],
                mask=inside_lower[:, None] & is_channel,
                other=0.0,
            )
            b = tl.load(
                first + higher.to(tl.int64)[:, None] * ROW + channels[None, :],
                mask=inside_higher[:, None] & is_channel,
                other=0.0,
            )
            products = _multiply(a, b, products, PRECISION, INTERPRETED)
        squares_lower = _squares(first, lower, inside_lower, ROW, WIDTH, TILE, STEP)
        squares_higher = _squares(first, higher, inside_higher, ROW, WIDTH, TILE, STEP)
        # Equal tokens have equal similarities to any other, on whichever side of it they lie.
        if BY_DISTANCE:
            similar = _negative_distances(products, squares_lower, squares_higher, LOWEST)
        else:
            similar = _cosines(products, squares_lower, squares_higher)
        inside = inside_lower[:, None] & inside_higher[None, :]
        is_pair = lower[:, None] < higher[None, :]
        is_same = lower[:, None] == higher[None, :]
        stride = tl.num_programs(0) * TILE
        rows = similarities + image.to(tl.int64) * stride * stride
        tl.store(
            rows + lower[:, None] * stride + higher[None, :],
            tl.where(is_same, float("-inf"), similar),
            mask=inside & (is_pair | is_same),
        )
        tl.store(
            rows + higher[:, None] * stride + lower[None, :],
            tl.trans(similar),
            mask=tl.trans(inside & is_pair),
        )


def similarity_constants(
    prefix: int, row_stride: int, width: int, dtype: torch.dtype, by_distance: bool
) -> dict[str, object]:
    """Return the constants that `similarity_kernel` is compiled for.

    Args:
        row_stride: numbers between the keys of two tokens.
        width: of the keys of all heads together.
        by_distance: write negative distances instead of cosines.
    """
    # tf32x3 is as exact as float32 to 1e-6 (three products of high and low halves).
    is_exact = INTERPRETED or dtype != torch.float32
    return {
        "PREFIX": prefix,
        "ROW": row_stride,
        "WIDTH": width,
        "TILE": TILE,
        "STEP": FLOAT32_STEP if dtype == torch.float32 else STEP,
        "PRECISION": "ieee" if is_exact else "tf32x3",
        "INTERPRETED": INTERPRETED,
        "BY_DISTANCE": by_distance,
        "LOWEST": torch.finfo(torch.float32).min,
    }


def launch_similarities(
    keys: Tensor, before: Tensor, after: Tensor, longest: int, prefix: int, by_distance: bool
) -> Tensor:
    """Return the similarities of the tokens of each image that are no prefix tokens.

    For the arguments see `tome_core.backends.cuda.pairs.match_pairs`.

    Returns:
        float32 ``(images, n, n)``, where n is ``longest`` without the prefix, rounded up to whole
        tiles. Undefined past the last token of an image, and for images that merge nothing.
    """
    _, heads, width = keys.shape
    images = len(before) - 1
    tiles = max(triton.cdiv(longest - prefix, TILE), 1)
    similarities = keys.new_empty(images, tiles * TILE, tiles * TILE, dtype=torch.float32)
    similarity_kernel[(tiles, tiles, images)](
        keys,
        before,
        after,
        similarities,
        **similarity_constants(prefix, keys.stride(0), heads * width, keys.dtype, by_distance),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return similarities
