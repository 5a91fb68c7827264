"""From the most similar token of B for each token of A to the destination of every token.

The rank of a token is the number of tokens that come before it. So nothing is sorted, and among
equal ones the first wins.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# The smallest number of tokens of A, or of B, for which a kernel is compiled: this keeps the
# variants few.
SMALLEST_BLOCK = 128
CHUNK = 32


@triton.jit
def _keep_order(
    start,
    new_start,
    length,
    order,
    segment_starts,
    dest,
    BLOCK: tl.constexpr,
):
    """Place an image that merges nothing: every token keeps its position, alone in its segment."""
    for begin in range(0, length, BLOCK):
        position = begin + tl.arange(0, BLOCK)
        inside = position < length
        tl.store(order + start + position, start + position, mask=inside)
        tl.store(segment_starts + new_start + position, start + position, mask=inside)
        tl.store(dest + start + position, new_start + position, mask=inside)


@triton.jit(do_not_specialize=["before", "after", "segment_count"])
def place_kernel(
    similarity,
    partner,
    before,
    after,
    order,
    segment_starts,
    dest,
    segment_count,
    PREFIX: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Find the destination of each token of one image; see `launch_place`.

    All tokens of A, and all tokens of B, fit into ``BLOCK``. Each token of A is compared with all
    others of A, one chunk of them at a time.
    """
    image = tl.program_id(0)
    start = tl.load(before + image)
    end = tl.load(before + image + 1)
    new_start = tl.load(after + image)
    new_end = tl.load(after + image + 1)
    length = end - start
    r = length - (new_end - new_start)
    own = tl.arange(0, BLOCK)
    # The segments past the last destination are empty: they begin where the tokens end. The images
    # share the work of writing them.
    images = tl.num_programs(0)
    tokens = tl.load(before + images)
    first_unused = tl.load(after + images)
    for begin in range(first_unused + image * BLOCK, segment_count, images * BLOCK):
        segment = begin + own
        tl.store(segment_starts + segment, tokens, mask=segment < segment_count)
    if r == 0:
        _keep_order(start, new_start, length, order, segment_starts, dest, BLOCK)
    else:
        # Sets A and B alternate; prefix tokens are counted, but stay out of both.
        first_a = PREFIX + PREFIX % 2
        first_b = PREFIX + 1 - PREFIX % 2
        count_a = (length - first_a + 1) // 2
        count_b = (length - first_b + 1) // 2
        in_a = own < count_a
        in_b = own < count_b
        own_similarity = tl.load(similarity + start + own, mask=in_a, other=float("-inf"))
        own_partner = tl.load(partner + start + own, mask=in_a, other=0)
        # For each token of A: how many tokens of A are more similar to their partners.
        rank = tl.zeros((BLOCK,), tl.int32)
        # For each token of A: how many unmerged tokens of A come before it.
        unmerged_before = tl.zeros((BLOCK,), tl.int32)
        # For each token of A, if it merges: how many merging tokens precede it in `order`.
        merging_before_a = tl.zeros((BLOCK,), tl.int32)
        # For each token of B: how many merging tokens precede it in `order`.
        merging_before_b = tl.zeros((BLOCK,), tl.int32)
        for begin in range(0, count_a, CHUNK):
            # A chunk of the other tokens of A.
            other = begin + tl.arange(0, CHUNK)
            inside = other < count_a
            others_similarity = tl.load(
                similarity + start + other, mask=inside, other=float("-inf")
            )[None, :]
            others_partner = tl.load(partner + start + other, mask=inside, other=0)[None, :]
            # Which of them rank before each token: the more similar; of equal ones, the earlier.
            is_earlier = other[None, :] < own[:, None]
            is_higher = others_similarity > own_similarity[:, None]
            is_equal = others_similarity == own_similarity[:, None]
            wins = (is_higher | (is_equal & is_earlier)).to(tl.int32)
            rank += tl.sum(wins, axis=1)
            # The rank of the others follows from their wins: a token wins over all rows past the
            # end of A and over those that rank after it, and never over itself.
            others_rank = BLOCK - 1 - tl.sum(wins, axis=0)
            # The r most similar merge.
            merges = (inside & (others_rank < r))[None, :]
            stays = (inside & (others_rank >= r))[None, :]
            unmerged_before += tl.sum((stays & is_earlier).to(tl.int32), axis=1)
            # Merging tokens are in order of their destination, then of their position.
            lower = others_partner < own_partner[:, None]
            same = others_partner == own_partner[:, None]
            comes_before = merges & (lower | (same & is_earlier))
            merging_before_a += tl.sum(comes_before.to(tl.int32), axis=1)
            of_earlier_b = merges & (others_partner < own[:, None])
            merging_before_b += tl.sum(of_earlier_b.to(tl.int32), axis=1)
        # New positions in the image: prefix tokens, unmerged tokens of A, tokens of B.
        merged = rank < r
        first_destination = PREFIX + count_a - r
        token = start + first_a + 2 * own
        merged_position = first_destination + own_partner
        new_position = tl.where(merged, merged_position, PREFIX + unmerged_before)
        # A token that merges follows the token of B at its destination.
        merging_offset = tl.where(merged, 1 + merging_before_a, 0)
        order_index = start + new_position + merging_offset
        tl.store(dest + token, new_start + new_position, mask=in_a)
        tl.store(order + order_index, token, mask=in_a)
        is_unmerged = in_a & (rank >= r)
        tl.store(segment_starts + new_start + new_position, order_index, mask=is_unmerged)
        token = start + first_b + 2 * own
        new_position = first_destination + own
        order_index = start + new_position + merging_before_b
        tl.store(dest + token, new_start + new_position, mask=in_b)
        tl.store(order + order_index, token, mask=in_b)
        tl.store(segment_starts + new_start + new_position, order_index, mask=in_b)
        for position in tl.static_range(PREFIX):
            tl.store(order + start + position, start + position)
            tl.store(segment_starts + new_start + position, start + position)
            tl.store(dest + start + position, new_start + position)


def warps_of(block: int) -> int:
    """Return the warps of a program that ranks ``block`` tokens at once."""
    return 4 if block <= SMALLEST_BLOCK else 8


def launch_place(
    similarity: Tensor,
    partner: Tensor,
    before: Tensor,
    after: Tensor,
    order: Tensor,
    segment_starts: Tensor,
    dest: Tensor,
    largest_set: int,
    prefix: int,
) -> None:
    """Write ``order``, ``segment_starts`` and ``dest``.

    They are documented at `tome_core.backends.cuda.matching.PackedMatching`.

    Args:
        similarity, partner: for the tokens of A of each image, as if they lay at its front: the
            similarity of the most similar token of B, float32 ``(T,)``, and its number in B, int32
            ``(T,)``.
        before, after: as in `tome_core.backends.cuda.matching.match`.
        segment_starts: ``(capacity + 1,)``, for a capacity of at least T' destinations; the
            segments past the last destination are empty, after all tokens.
        largest_set: the tokens of A, or of B, of the longest image.
    """
    images = len(before) - 1
    block = max(triton.next_power_of_2(largest_set), SMALLEST_BLOCK)
    place_kernel[(images,)](
        similarity,
        partner,
        before,
        after,
        order,
        segment_starts,
        dest,
        len(segment_starts),
        PREFIX=prefix,
        BLOCK=block,
        CHUNK=CHUNK,
        num_warps=warps_of(block),
    )
