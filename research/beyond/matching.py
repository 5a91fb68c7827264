"""Pairs as in `tome_core.Pairs`, by scores that are rounded, kept or changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core.matching import AtMostHalf, Matching
from tome_core.pairs import find_pairs
from tome_core.split import most_mergeable


@dataclass(frozen=True)
class RoundedPairs(AtMostHalf):
    """Pairs by a metric that is rounded to bfloat16, as a tensor core reads it.

    Products and sums are not rounded.

    Attributes:
        similarities: see `tome_core.Pairs`.
        rerank: take the best 2r pairs by the rounded metric, then the best r of them by the exact
            one.
    """

    similarities: Callable[[Tensor], Tensor]
    rerank: bool

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `tome_core.Matcher`."""
        exact = metric[:, prefix:]
        rough_scores = self.similarities(exact.bfloat16().to(exact.dtype))
        if not self.rerank:
            return match_by_scores(rough_scores, r, prefix)
        most = most_mergeable(metric.shape[1], prefix)
        r = min(r, most)
        rough, higher = find_pairs(rough_scores, min(2 * r, most))
        candidates = rough.topk(min(2 * r, most), dim=-1).indices  # (B, 2r)
        is_candidate = torch.zeros_like(rough, dtype=torch.bool).scatter_(1, candidates, True)
        scores = self.similarities(exact).gather(2, higher.unsqueeze(-1)).squeeze(-1)  # (B, P)
        return _match_best(scores.masked_fill(~is_candidate, -torch.inf), higher, r, prefix)


def symmetric(scores: Tensor) -> Tensor:
    """Return ``scores (B, P, P)`` as `find_pairs` takes them.

    Both entries of a pair are that above the diagonal; no token has a pair with itself, and NaN is
    the lowest score.
    """
    above_diagonal = scores.triu(1)
    both = above_diagonal + above_diagonal.transpose(1, 2)
    both.nan_to_num_(nan=torch.finfo(both.dtype).min)
    both.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return both


def match_by_scores(scores: Tensor, r: int, prefix: int) -> Matching:
    """Match the ``r`` best pairs.

    Args:
        scores: ``(B, P, P)`` of all tokens but the prefix, as `symmetric` returns them;
            overwritten.
        r: as asked for; at most half of the tokens merge.
        prefix: number of prefix tokens, which stay.
    """
    r = min(r, most_mergeable(prefix + scores.shape[1], prefix))
    found, higher = find_pairs(scores, r)
    return _match_best(found, higher, r, prefix)


def _match_best(found: Tensor, higher: Tensor, r: int, prefix: int) -> Matching:
    """Match the ``r`` best of the pairs that `find_pairs` returned."""
    batch, patches = found.shape
    partner = torch.arange(prefix + patches, device=found.device).repeat(batch, 1)  # (B, N)
    order = found.argsort(dim=-1, descending=True, stable=True)  # (B, P)
    lower = order[:, :r]  # (B, r)
    partner.scatter_(1, prefix + lower, prefix + higher.gather(1, lower))
    return Matching.into(partner)
