"""The rules "pairs" and "nearest": the most similar tokens merge, two by two, wherever they are.

A relative of merging mutually nearest neighbours (MPM, arXiv 2604.05718) that merges exactly r.
The two rules differ in what similar means: a large cosine of the keys, or a small distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.matching import AtMostHalf, Matching
from tome_core.split import most_mergeable


def cosines(metric: Tensor) -> Tensor:
    """Return the cosine similarity of all pairs of tokens, ``(B, N, d)`` -> ``(B, N, N)``.

    A token has none with itself: -inf. NaN becomes -2, below all others.
    """
    unit = F.normalize(metric, dim=-1)
    return _symmetric(unit @ unit.transpose(1, 2), lowest=-2.0)


def negative_distances(metric: Tensor) -> Tensor:
    """Return minus half of the squared distance of all pairs of tokens, as `cosines` does.

    Attention reads keys by their products with queries. When key a takes the place of key b, that
    of query q changes by at most ``|q| * |a - b|``: the distance bounds it, and the cosine, which
    does not see how long keys are, does not.
    """
    half_squares = metric.square().sum(dim=-1) / 2  # (B, N)
    both = half_squares.unsqueeze(2) + half_squares.unsqueeze(1)
    products = metric @ metric.transpose(1, 2)
    return _symmetric(products - both, lowest=torch.finfo(metric.dtype).min)


def _symmetric(similarities: Tensor, lowest: float) -> Tensor:
    """Return the same with both entries of a pair equal to the last bit, and -inf on the diagonal.

    A matrix product alone does not promise that they are. NaN becomes ``lowest``.
    """
    above_diagonal = similarities.triu(1)
    symmetric = above_diagonal + above_diagonal.transpose(1, 2)
    symmetric.nan_to_num_(nan=lowest, neginf=lowest)
    symmetric.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return symmetric


@dataclass(frozen=True)
class Pairs(AtMostHalf):
    """The ``r`` most similar pairs of tokens merge, and each token is in one pair at most.

    The definition: ``r`` times, the most similar two of all tokens that are no prefix tokens and in
    no pair yet become a pair. Of equal similarities, the pair whose lower position is lowest comes
    first, then the one whose higher position is lowest; NaN comes last. The lower token of a pair
    merges into the higher one. The tokens that stay keep their order.

    Attributes:
        similarities: of all pairs of tokens, ``(B, N, d)`` -> ``(B, N, N)``; symmetric, with -inf
            for a token and itself, and no NaN.
    """

    similarities: Callable[[Tensor], Tensor] = cosines

    @torch.no_grad()
    def __call__(
        self,
        metric: Tensor,
        r: int,
        prefix: int,
    ) -> Matching:
        """See `tome_core.Matcher`."""
        batch, tokens, _ = metric.shape
        r = min(r, most_mergeable(tokens, prefix))
        partner = torch.arange(tokens, device=metric.device).repeat(batch, 1)  # (B, N)
        similarity, higher = find_pairs(self.similarities(metric[:, prefix:]), r)
        order = similarity.argsort(dim=-1, descending=True, stable=True)  # (B, N - prefix)
        lower = order[:, :r]  # (B, r)
        partner.scatter_(1, prefix + lower, prefix + higher.gather(1, lower))
        return Matching.into(partner)


def find_pairs(similarities: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return pairs among which are the ``r`` of the definition, for each token its pair.

    In each round, all tokens that are nearest to each other become pairs. No other pair with one of
    the two comes before them, so the definition takes them too, if r is large enough. The rounds
    end when no free pair can come before the r-th.

    Args:
        similarities: ``(B, N, N)``, symmetric, -inf on the diagonal; overwritten.
        r: at most half of N.

    Returns:
        For the lower token of each pair its similarity and the position of the higher one,
        ``(B, N)`` each. The similarity of other tokens is -inf.
    """
    batch, tokens, _ = similarities.shape
    position = torch.arange(tokens, device=similarities.device)  # (N,)
    found = similarities.new_full((batch, tokens), -torch.inf)
    higher = position.repeat(batch, 1)
    free = torch.ones_like(higher, dtype=torch.bool)
    unfinished = r > 0
    while unfinished:
        # Of equal similarities, max takes the first, as the definition does.
        best, nearest = similarities.max(dim=-1)  # (B, N) each
        is_mutual = free & (nearest.gather(1, nearest) == position) & (best > -torch.inf)
        is_lower = is_mutual & (position < nearest)
        found = torch.where(is_lower, best, found)
        higher = torch.where(is_lower, nearest, higher)
        free &= ~is_mutual
        similarities.masked_fill_(is_mutual.unsqueeze(1), -torch.inf)
        # No free pair is more similar than this.
        best_free = best.masked_fill(~free, -torch.inf).amax(dim=-1)  # (B,)
        of_rth = found.topk(r, dim=-1).values[:, -1]  # (B,); -inf while there are fewer pairs
        # Of equal similarities, the free pair may come first.
        unfinished = bool((best_free >= of_rth).any())
    return found, higher
