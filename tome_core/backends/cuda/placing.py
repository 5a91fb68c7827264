"""From the most similar token of B of each token of A: which of them merge, and where every token of an image goes.

A token's rank is the number of tokens that come before it, so nothing is sorted, and the first of
equal ones wins.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Tokens of A, or of B, that are ranked at once, at least: so few variants are ever compiled.
SMALLEST_BLOCK = 128
CHUNK = 32


@triton.jit(do_not_specialize=["before", "after", "places"])
def place_kernel(
    similarity,
    partner,
    before,
    after,
    order,
    begins,
    dest,
    places,
    PREFIX: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Where each token of one image goes; see `launch_place`.

    All of A, and all of B, fit into ``BLOCK``; tokens of A are compared with all of A, a chunk at a
    time.
    """
    image = tl.program_id(0)
    start = tl.load(before + image)
    end = tl.load(before + image + 1)
    new_start = tl.load(after + image)
    new_end = tl.load(after + image + 1)
    length = end - start
    r = length - (new_end - new_start)
    own = tl.arange(0, BLOCK)
    images = tl.num_programs(0)
    tokens = tl.load(before + images)
    for begin in range(tl.load(after + images) + image * BLOCK, places, images * BLOCK):
        place = begin + own
        tl.store(begins + place, tokens, mask=place < places)
    if r == 0:
        for begin in range(0, length, BLOCK):
            place = begin + own
            inside = place < length
            tl.store(order + start + place, start + place, mask=inside)
            tl.store(begins + new_start + place, start + place, mask=inside)
            tl.store(dest + start + place, new_start + place, mask=inside)
    else:
        first_a = PREFIX + PREFIX % 2
        first_b = PREFIX + 1 - PREFIX % 2
        of_a = (length - first_a + 1) // 2
        of_b = (length - first_b + 1) // 2
        in_a = own < of_a
        in_b = own < of_b
        own_similarity = tl.load(similarity + start + own, mask=in_a, other=float("-inf"))
        own_partner = tl.load(partner + start + own, mask=in_a, other=0)
        rank = tl.zeros((BLOCK,), tl.int32)
        stay_before = tl.zeros(
            (BLOCK,), tl.int32
        )  # tokens of A that stay and come before this one of A
        merged_before = tl.zeros(
            (BLOCK,), tl.int32
        )  # sources that come before this one of A, if it merges
        fewer = tl.zeros((BLOCK,), tl.int32)  # sources that come before this one of B
        for begin in range(0, of_a, CHUNK):
            other = begin + tl.arange(0, CHUNK)
            there = other < of_a
            other_similarity = tl.load(similarity + start + other, mask=there, other=float("-inf"))[
                None, :
            ]
            other_partner = tl.load(partner + start + other, mask=there, other=0)[None, :]
            earlier = other[None, :] < own[:, None]
            more = other_similarity > own_similarity[:, None]
            wins = (more | ((other_similarity == own_similarity[:, None]) & earlier)).to(tl.int32)
            rank += tl.sum(wins, axis=1)
            # It wins over all rows past the end of A, over those that it comes before, and never
            # over itself.
            other_rank = BLOCK - 1 - tl.sum(wins, axis=0)
            merges = (there & (other_rank < r))[None, :]
            stays = (there & (other_rank >= r))[None, :]
            lower = other_partner < own_partner[:, None]
            same = other_partner == own_partner[:, None]
            stay_before += tl.sum((stays & earlier).to(tl.int32), axis=1)
            merged_before += tl.sum((merges & (lower | (same & earlier))).to(tl.int32), axis=1)
            fewer += tl.sum((merges & (other_partner < own[:, None])).to(tl.int32), axis=1)
        merged = rank < r
        first_place = PREFIX + of_a - r  # of B
        token = start + first_a + 2 * own
        place = tl.where(merged, first_place + own_partner, PREFIX + stay_before)
        slot = tl.where(merged, place + 1 + merged_before, place)
        tl.store(dest + token, new_start + place, mask=in_a)
        tl.store(order + start + slot, token, mask=in_a)
        tl.store(begins + new_start + place, start + place, mask=in_a & (rank >= r))
        token = start + first_b + 2 * own
        place = first_place + own
        slot = start + place + fewer
        tl.store(dest + token, new_start + place, mask=in_b)
        tl.store(order + slot, token, mask=in_b)
        tl.store(begins + new_start + place, slot, mask=in_b)
        for place_of_prefix in tl.static_range(PREFIX):
            tl.store(order + start + place_of_prefix, start + place_of_prefix)
            tl.store(begins + new_start + place_of_prefix, start + place_of_prefix)
            tl.store(dest + start + place_of_prefix, new_start + place_of_prefix)


def warps_of(block: int) -> int:
    """Warps of a program that ranks so many tokens at once."""
    return 4 if block <= SMALLEST_BLOCK else 8


def launch_place(
    similarity: Tensor,
    partner: Tensor,
    before: Tensor,
    after: Tensor,
    order: Tensor,
    begins: Tensor,
    dest: Tensor,
    most: int,
    prefix: int,
) -> None:
    """Fill in ``order``, ``begins`` and ``dest``; see `tome_core.backends.cuda.matching.Matched`.

    Args:
        similarity, partner: for the tokens of A of each image, which are taken to lie at its front:
            how similar the most similar token of B is, float32 ``(T,)``, and which of B it is,
            int32 ``(T,)``.
        before, after: as `tome_core.backends.cuda.matching.match` has them.
        begins: of places past the last, if there is room for more, all tokens come before.
        most: tokens of A, or of B, of the longest image.
    """
    block = max(triton.next_power_of_2(most), SMALLEST_BLOCK)
    place_kernel[(len(before) - 1,)](
        similarity,
        partner,
        before,
        after,
        order,
        begins,
        dest,
        len(begins),
        PREFIX=prefix,
        BLOCK=block,
        CHUNK=CHUNK,
        num_warps=warps_of(block),
    )
