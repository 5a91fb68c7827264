"""From the most similar token of B for each token of A to the destination of every token.

The rank of a token is the number of tokens that come before it. So nothing is sorted, and among
equal ones the first wins.

If all tokens of A of an image fit into one block, one program ranks and places them. The tokens of
long images are divided among programs. Their ranks are computed in a launch before, because the
place of a token depends on the ranks of all others.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # the tokens of A, or of B, of one program
CHUNK = 32  # the tokens with which it compares them in one step
WARPS = 4


@triton.jit
def wins_over(own_similarity, others_similarity, is_earlier):
    """Return which of n other tokens rank before each of m own ones, ``(m, n)``.

    The more similar token does; of equal ones, the earlier.
    """
    is_higher = others_similarity[None, :] > own_similarity[:, None]
    is_equal = others_similarity[None, :] == own_similarity[:, None]
    return is_higher | (is_equal & is_earlier)


@triton.jit(do_not_specialize=["before", "after"])
def rank_kernel(
    similarity,
    before,
    after,
    ranks,
    PREFIX: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write how many tokens of A of the image rank before each token of one block of A."""
    image = tl.program_id(1)
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(before + image)
    length = tl.load(before + image + 1) - start
    length_after = tl.load(after + image + 1) - tl.load(after + image)
    first_a = PREFIX + PREFIX % 2
    count_a = (length - first_a + 1) // 2
    if (length_after < length) & (tl.program_id(0) * BLOCK < count_a):
        in_a = own < count_a
        own_similarity = tl.load(similarity + start + own, mask=in_a, other=float("-inf"))
        rank = tl.zeros((BLOCK,), tl.int32)
        for begin in range(0, count_a, CHUNK):
            other = begin + tl.arange(0, CHUNK)
            others_similarity = tl.load(
                similarity + start + other, mask=other < count_a, other=float("-inf")
            )
            # The others past the end of A have the lowest similarity and are never earlier.
            is_earlier = other[None, :] < own[:, None]
            wins = wins_over(own_similarity, others_similarity, is_earlier)
            rank += tl.sum(wins.to(tl.int32), axis=1)
        tl.store(ranks + start + own, rank, mask=in_a)


@triton.jit
def close_segments(
    before, after, segment_starts, segment_count, image, images, BLOCK: tl.constexpr
):
    """Make the segments past the last destination empty: they begin where the tokens end.

    The ``images`` share the work; this is that of one of them.
    """
    tokens = tl.load(before + images)
    first_unused = tl.load(after + images)
    for begin in range(first_unused + image * BLOCK, segment_count, images * BLOCK):
        segment = begin + tl.arange(0, BLOCK)
        tl.store(segment_starts + segment, tokens, mask=segment < segment_count)


@triton.jit
def keep_order(
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
    ranks,
    order,
    segment_starts,
    dest,
    segment_count,
    PREFIX: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_RANKED: tl.constexpr,
):
    """Find the destination of each token of one block of A, and of B, of one image.

    For the arguments see `launch_place`. Each token of A is compared with all others of A, one
    chunk of them at a time. Unless ``IS_RANKED``, there are no ``ranks``, and all tokens of A, and
    all tokens of B, fit into ``BLOCK``.
    """
    image = tl.program_id(1)
    is_first = tl.program_id(0) == 0
    start = tl.load(before + image)
    end = tl.load(before + image + 1)
    new_start = tl.load(after + image)
    new_end = tl.load(after + image + 1)
    length = end - start
    r = length - (new_end - new_start)
    in_block = tl.arange(0, BLOCK)
    own = in_block  # fewer registers than with an offset
    if IS_RANKED:
        own += tl.program_id(0) * BLOCK
    if is_first:
        images = tl.num_programs(1)
        close_segments(before, after, segment_starts, segment_count, image, images, BLOCK)
    if r == 0:
        if is_first:
            keep_order(start, new_start, length, order, segment_starts, dest, BLOCK)
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
        if IS_RANKED:
            rank = tl.load(ranks + start + own, mask=in_a, other=0)
        else:
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
            others_partner = tl.load(partner + start + other, mask=inside, other=0)[None, :]
            is_earlier = other[None, :] < own[:, None]
            if IS_RANKED:
                others_rank = tl.load(ranks + start + other, mask=inside, other=0)
            else:
                others_similarity = tl.load(
                    similarity + start + other, mask=inside, other=float("-inf")
                )
                wins = wins_over(own_similarity, others_similarity, is_earlier).to(tl.int32)
                rank += tl.sum(wins, axis=1)
                # The rank of the others follows from their wins: a token wins over all rows past
                # the end of A and over those that rank after it, and never over itself.
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
        if is_first:
            for position in tl.static_range(PREFIX):
                tl.store(order + start + position, start + position)
                tl.store(segment_starts + new_start + position, start + position)
                tl.store(dest + start + position, new_start + position)


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
    blocks = max(triton.cdiv(largest_set, BLOCK), 1)
    is_ranked = blocks > 1
    ranks = partner
    if is_ranked:
        ranks = partner.new_empty(len(partner))
        rank_kernel[(blocks, images)](
            similarity,
            before,
            after,
            ranks,
            PREFIX=prefix,
            BLOCK=BLOCK,
            CHUNK=CHUNK,
            num_warps=WARPS,
        )
    place_kernel[(blocks, images)](
        similarity,
        partner,
        before,
        after,
        ranks,
        order,
        segment_starts,
        dest,
        len(segment_starts),
        PREFIX=prefix,
        BLOCK=BLOCK,
        CHUNK=CHUNK,
        IS_RANKED=is_ranked,
        num_warps=WARPS,
    )
