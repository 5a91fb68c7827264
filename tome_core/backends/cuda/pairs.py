"""The rules "pairs" and "nearest" for all images of a packed buffer in two launches.

The result is that of `tome_core.pairs.Pairs`. The first launch writes the similarities of all pairs
of each image, each computed once. In the second, one program an image finds the pairs in rounds, as
`tome_core.pairs.find_pairs` does, and then the place of every token. The number of rounds depends
on the keys, so they are a loop inside the kernel: the host neither waits nor launches more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tome_core.backends.cuda.matching import PackedMatching
from tome_core.backends.cuda.placing import close_segments, keep_order, wins_over
from tome_core.backends.cuda.similarities import TILE, launch_similarities

ROWS = 32  # the tokens whose nearest ones are searched for in one step,
CHUNK = 64  # the tokens among which they are searched
BLOCK = 256  # the tokens of any other step: one for each thread
WARPS = 8


@triton.jit
def _search(
    similarities,
    stride,
    count,
    nearest,
    best,
    taken,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Find the most similar free token for each free one that has lost, or never had, its own.

    Of equal ones, the first. A token that is its own nearest has none.
    """
    for begin in range(0, count, ROWS):
        token = begin + tl.arange(0, ROWS)
        inside = token < count
        is_taken = tl.load(taken + token, mask=inside, other=1)
        own = tl.load(nearest + token, mask=inside, other=0)
        has_lost_it = tl.load(taken + own, mask=inside, other=0) == 1
        searches = (is_taken == 0) & (has_lost_it | (own == token))
        if tl.max(searches.to(tl.int32), axis=0) == 1:
            highest = tl.full((ROWS,), float("-inf"), tl.float32)
            index = token
            for other_begin in range(0, count, CHUNK):
                other = other_begin + tl.arange(0, CHUNK)
                is_free = tl.load(taken + other, mask=other < count, other=1) == 0
                # A row is as wide as its tiles, so wide loads are possible; what lies past the last
                # token has no meaning.
                values = tl.load(
                    similarities + token[:, None] * stride + other[None, :],
                    mask=searches[:, None] & (other < stride)[None, :],
                )
                values = tl.where(is_free[None, :], values, float("-inf"))
                value, offset = tl.max(values, axis=1, return_indices=True)
                index = tl.where(value > highest, other_begin + offset.to(tl.int32), index)
                highest = tl.maximum(highest, value)
            # All threads have read what is overwritten now.
            tl.debug_barrier()
            tl.store(best + token, highest, mask=searches)
            tl.store(nearest + token, index, mask=searches)


@triton.jit
def _pair_mutual(count, nearest, best, taken, found, higher, BLOCK: tl.constexpr):
    """Make pairs of the tokens that are nearest to each other.

    Returns the highest similarity of a token that is still free with one that was.
    """
    best_free = float("-inf")
    for begin in range(0, count, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        inside = token < count
        is_free = tl.load(taken + token, mask=inside, other=1) == 0
        own = tl.load(nearest + token, mask=inside, other=0)
        value = tl.load(best + token, mask=is_free, other=float("-inf"))
        back = tl.load(nearest + own, mask=is_free, other=-1)
        is_mutual = is_free & (back == token) & (value > float("-inf"))
        is_lower = is_mutual & (token < own)
        tl.store(found + token, value, mask=is_lower)
        tl.store(higher + token, own, mask=is_lower)
        tl.store(taken + token, 1, mask=is_mutual)
        rest = tl.where(is_free & (is_mutual == 0), value, float("-inf"))
        best_free = tl.maximum(best_free, tl.max(rest, axis=0))
    return best_free


@triton.jit
def _count_above(values, limit, count, BLOCK: tl.constexpr):
    """Return how many of ``values`` are above ``limit``."""
    above = 0
    for begin in range(0, count, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        value = tl.load(values + token, mask=token < count, other=float("-inf"))
        above += tl.sum((value > limit).to(tl.int32), axis=0)
    return above


@triton.jit
def _choose(found, r, count, merges, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Write 1 for the lower tokens of the ``r`` most similar pairs, and 0 for all others.

    Of equal ones, the lowest win.
    """
    for begin in range(0, count, ROWS):
        token = begin + tl.arange(0, ROWS)
        inside = token < count
        value = tl.load(found + token, mask=inside, other=float("-inf"))
        rank = tl.zeros((ROWS,), tl.int32)
        for other_begin in range(0, count, CHUNK):
            other = other_begin + tl.arange(0, CHUNK)
            others = tl.load(found + other, mask=other < count, other=float("-inf"))
            is_earlier = other[None, :] < token[:, None]
            rank += tl.sum(wins_over(value, others, is_earlier).to(tl.int32), axis=1)
        is_chosen = (value > float("-inf")) & (rank < r)
        tl.store(merges + token, is_chosen.to(tl.int32), mask=inside)


@triton.jit
def _place_staying(
    start,
    new_start,
    count,
    merges,
    receives,
    order,
    segment_starts,
    dest,
    PREFIX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Place the tokens that stay, in their order; behind each is room for the one it receives."""
    for position in tl.static_range(PREFIX):
        tl.store(order + start + position, start + position)
        tl.store(segment_starts + new_start + position, start + position)
        tl.store(dest + start + position, new_start + position)
    stay_before = 0
    receive_before = 0
    for begin in range(0, count, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        inside = token < count
        stays = inside & (tl.load(merges + token, mask=inside, other=1) == 0)
        receiving = tl.load(receives + token, mask=inside, other=0)
        staying = stays.to(tl.int32)
        new_position = PREFIX + stay_before + tl.cumsum(staying, axis=0) - staying
        received = receive_before + tl.cumsum(receiving, axis=0) - receiving
        order_index = start + new_position + received
        in_buffer = start + PREFIX + token
        tl.store(dest + in_buffer, new_start + new_position, mask=stays)
        tl.store(order + order_index, in_buffer, mask=stays)
        tl.store(segment_starts + new_start + new_position, order_index, mask=stays)
        stay_before += tl.sum(staying, axis=0)
        receive_before += tl.sum(receiving, axis=0)


@triton.jit
def _place_merging(first, count, merges, higher, order, segment_starts, dest, BLOCK: tl.constexpr):
    """Place each token that merges behind the one that it merges into."""
    for begin in range(0, count, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        is_merging = tl.load(merges + token, mask=token < count, other=0) == 1
        into = tl.load(higher + token, mask=is_merging, other=0)
        destination = tl.load(dest + first + into, mask=is_merging, other=0)
        order_index = 1 + tl.load(segment_starts + destination, mask=is_merging, other=0)
        tl.store(dest + first + token, destination, mask=is_merging)
        tl.store(order + order_index, first + token, mask=is_merging)


_SCRATCH = ("best", "found", "nearest", "higher", "taken", "merges", "receives")


@triton.jit(do_not_specialize=["before", "after", "tiles", "segment_count", *_SCRATCH])
def pair_kernel(
    similarities,
    before,
    after,
    best,
    found,
    nearest,
    higher,
    taken,
    merges,
    receives,
    order,
    segment_starts,
    dest,
    tiles,
    segment_count,
    PREFIX: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pair the tokens of one image, and place them; see `_Scratch` and `PackedMatching`.

    All positions are among the tokens that are no prefix tokens. Threads read what others wrote, so
    barriers lie between the steps.
    """
    image = tl.program_id(0)
    images = tl.num_programs(0)
    start = tl.load(before + image)
    length = tl.load(before + image + 1) - start
    new_start = tl.load(after + image)
    r = length - (tl.load(after + image + 1) - new_start)
    close_segments(before, after, segment_starts, segment_count, image, images, BLOCK)
    if r == 0:
        keep_order(start, new_start, length, order, segment_starts, dest, BLOCK)
    else:
        count = length - PREFIX
        first = start + PREFIX
        stride = tiles * TILE
        similarities += image.to(tl.int64) * stride * stride
        best += first
        found += first
        nearest += first
        higher += first
        taken += first
        merges += first
        receives += first
        for begin in range(0, count, BLOCK):
            token = begin + tl.arange(0, BLOCK)
            inside = token < count
            tl.store(nearest + token, token, mask=inside)
            tl.store(found + token, float("-inf"), mask=inside)
            tl.store(taken + token, 0, mask=inside)
            tl.store(receives + token, 0, mask=inside)
        tl.debug_barrier()
        # Rounds, until r pairs are more similar than any free one. Of equal ones, a free pair may
        # come first.
        before_free = 0
        best_free = float("inf")
        while (before_free < r) & (best_free > float("-inf")):
            _search(similarities, stride, count, nearest, best, taken, ROWS, CHUNK)
            tl.debug_barrier()
            best_free = _pair_mutual(count, nearest, best, taken, found, higher, BLOCK)
            tl.debug_barrier()
            before_free = _count_above(found, best_free, count, BLOCK)
        _choose(found, r, count, merges, ROWS, CHUNK)
        tl.debug_barrier()
        for begin in range(0, count, BLOCK):
            token = begin + tl.arange(0, BLOCK)
            is_merging = tl.load(merges + token, mask=token < count, other=0) == 1
            into = tl.load(higher + token, mask=is_merging, other=0)
            tl.store(receives + into, 1, mask=is_merging)
        tl.debug_barrier()
        _place_staying(
            start,
            new_start,
            count,
            merges,
            receives,
            order,
            segment_starts,
            dest,
            PREFIX,
            BLOCK,
        )
        tl.debug_barrier()
        _place_merging(first, count, merges, higher, order, segment_starts, dest, BLOCK)


def pair_constants(prefix: int) -> dict[str, object]:
    """Return the constants that `pair_kernel` is compiled for."""
    return {"PREFIX": prefix, "TILE": TILE, "ROWS": ROWS, "CHUNK": CHUNK, "BLOCK": BLOCK}


class _Scratch(NamedTuple):
    """What is known of each token, ``(T,)`` each; positions are in its image, without the prefix.

    Attributes:
        best: the similarity of the most similar free token.
        found: of the lower token of a pair, its similarity; -inf for all others.
        nearest: the position of the most similar free token; its own as long as none is known.
        higher: of the lower token of a pair, the position of the other.
        taken: 1 if it is in a pair.
        merges, receives: 1 if it merges, or another merges into it.
    """

    best: Tensor
    found: Tensor
    nearest: Tensor
    higher: Tensor
    taken: Tensor
    merges: Tensor
    receives: Tensor

    @classmethod
    def of(cls, like: Tensor, tokens: int) -> _Scratch:
        similarities = like.new_empty(2, tokens, dtype=torch.float32)
        numbers = like.new_empty(5, tokens, dtype=torch.int32)
        return cls(*similarities.unbind(), *numbers.unbind())


def launch_match_pairs(
    keys: Tensor,
    before: Tensor,
    after: Tensor,
    longest: int,
    after_total: int,
    prefix: int,
    by_distance: bool = False,
) -> PackedMatching:
    """Do the same as `match_pairs` without the operator around it."""
    tokens = keys.shape[0]
    order = before.new_empty(tokens)
    segment_starts = before.new_empty(after_total + 1)
    dest = before.new_empty(tokens)
    similarities = launch_similarities(keys, before, after, longest, prefix, by_distance)
    images, padded, _ = similarities.shape
    pair_kernel[(images,)](
        similarities,
        before,
        after,
        *_Scratch.of(keys, tokens),
        order,
        segment_starts,
        dest,
        padded // TILE,
        len(segment_starts),
        **pair_constants(prefix),
        num_warps=WARPS,
    )
    return PackedMatching(order, segment_starts, dest)


def match_pairs(
    keys: Tensor,
    before: Tensor,
    after: Tensor,
    longest: int,
    after_total: int,
    prefix: int,
    by_distance: bool = False,
) -> PackedMatching:
    """Match the tokens of each image by the keys of all heads, as `Pairs` does.

    Similarities take 4 bytes for each two tokens of each image: 256 KiB at 197 tokens, 64 MiB at
    4,097.

    Args:
        by_distance: follow the rule "nearest", not "pairs".
        For the others see `tome_core.backends.cuda.matching.match`.
    """
    return PackedMatching(
        *_operator(keys, before, after, longest, after_total, prefix, by_distance)
    )


_operator = torch.library.custom_op(
    "tome::match_pairs",
    launch_match_pairs,
    mutates_args=(),
    schema=(
        "(Tensor keys, Tensor before, Tensor after, SymInt longest, SymInt after_total, int prefix,"
        " bool by_distance) -> (Tensor, Tensor, Tensor)"
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
    by_distance: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = keys.shape[0]
    return before.new_empty(tokens), before.new_empty(after_total + 1), before.new_empty(tokens)
