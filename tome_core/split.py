"""Which tokens a block compares: all positions alternate between sets A and B (paper, section 3).

A has the even positions of the whole sequence. Prefix tokens count in the alternation, but belong
to neither set, since they never merge. Only a token of A merges, into one of B. Pure Python; the
kernels have the same rule in their own languages.
"""

from __future__ import annotations


def split(prefix: int) -> tuple[slice, slice]:
    """Return the positions of sets A and B."""
    is_odd = prefix % 2
    in_a = slice(prefix + is_odd, None, 2)
    in_b = slice(prefix + 1 - is_odd, None, 2)
    return in_a, in_b


def set_sizes(tokens: int, prefix: int) -> tuple[int, int]:
    """Return how many of ``tokens`` are in A and in B."""
    in_a, in_b = split(prefix)
    positions = range(tokens)
    return len(positions[in_a]), len(positions[in_b])


def most_mergeable(tokens: int, prefix: int) -> int:
    """Return how many tokens a block can merge: half of the non-prefix ones."""
    return (tokens - prefix) // 2


def tokens_left(
    tokens: int,
    r: int,
    prefix: int,
) -> int:
    """Return the tokens after a block that merges ``r`` of ``tokens``, or as many as it can."""
    return tokens - min(r, most_mergeable(tokens, prefix))
