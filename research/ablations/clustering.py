"""Matching by what bipartite matching was chosen over for its speed: k-means, and greedy pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from research.ablations.limit import AtMostHalf
from tome_core.matching import Matching
from tome_core.split import most_mergeable

# Of `Greedy`, whose check waits for the device.
_ROUNDS_PER_CHECK = 3


@dataclass(frozen=True)
class KMeans(AtMostHalf):
    """Lloyd's k-means over normalised metrics, with as many clusters as tokens shall be left.

    The first centres are drawn from the tokens (torch's generator). Of each cluster the token
    nearest to the centre stays. Where clusters have run empty, as many of the tokens farthest from
    their centres stay by themselves, so that the number of tokens follows from shapes alone.
    """

    iterations: int

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `tome_core.Matcher`."""
        unit = F.normalize(metric[:, prefix:], dim=-1)
        batch, patches, width = unit.shape
        clusters = self.remaining(metric.shape[1], r, prefix) - prefix
        first = torch.rand(batch, patches, device=metric.device).argsort(dim=-1)[:, :clusters]
        centres = unit.gather(1, first.unsqueeze(-1).expand(-1, -1, width))
        for _ in range(self.iterations):
            cluster = torch.cdist(unit, centres).argmin(dim=-1)
            sums = torch.zeros_like(centres).scatter_add(
                1, cluster.unsqueeze(-1).expand(-1, -1, width), unit
            )
            members = unit.new_zeros(batch, clusters).scatter_add(
                1, cluster, torch.ones_like(unit[..., 0])
            )
            members = members.unsqueeze(-1)
            centres = torch.where(members > 0, sums / members.clamp(min=1), centres)
        distance, cluster = torch.cdist(unit, centres).min(dim=-1)
        partner = _nearest_of_cluster(distance, cluster, clusters)
        still = torch.arange(prefix, device=metric.device).repeat(batch, 1)
        return Matching.into(torch.cat([still, prefix + partner], dim=1))


def _nearest_of_cluster(distance: Tensor, cluster: Tensor, length: int) -> Tensor:
    """For each token the one that it merges into, ``(B, M)``, such that exactly ``length`` stay."""
    by_distance = distance.argsort(dim=-1, stable=True)
    rank = by_distance.argsort(dim=-1)
    last = rank.shape[1] - 1
    first_rank = torch.full_like(rank[:, :length], last).scatter_reduce(1, cluster, rank, "amin")
    nearest = by_distance.gather(1, first_rank).gather(1, cluster)
    itself = torch.arange(rank.shape[1], device=rank.device)
    # Those that are nearest stay first, then the farthest.
    order = torch.where(nearest == itself, torch.inf, distance).argsort(
        dim=-1, descending=True, stable=True
    )
    stays = torch.zeros_like(cluster, dtype=torch.bool).scatter_(1, order[:, :length], True)
    return torch.where(stays, itself, nearest)


@dataclass(frozen=True)
class Greedy(AtMostHalf):
    """Merge the most similar pair of tokens (cosine), ``r`` times, each token at most once.

    Prefix tokens never merge. Of equally similar pairs, that with the lowest lower position comes
    first, then that with the lowest higher position.

    Two tokens of which each is the other's most similar one are a pair, whatever the other pairs
    are. So all such pairs are found at once, then those of the tokens that are left, until none can
    be among the ``r`` most similar: a few rounds instead of ``r``.

    Attributes:
        lower_stays: whether the token at the lower position stays, or the other one.
    """

    lower_stays: bool = True

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `tome_core.Matcher`."""
        tokens = metric.shape[1]
        r = min(r, most_mergeable(tokens, prefix))
        positions = torch.arange(tokens, device=metric.device)
        similarity = _similarity_of_pairs(metric, prefix)  # (B, N, N)
        higher = positions.repeat(len(metric), 1)  # by the lower token of a pair
        of_pair = torch.full_like(similarity[:, 0], -torch.inf)
        for found in range(1, r + 1):
            best, nearest = similarity.max(dim=-1)  # (B, N) each, the first of equal ones
            mutual = (nearest.gather(1, nearest) == positions) & (best > -torch.inf)
            is_lower = mutual & (positions < nearest)
            higher = torch.where(is_lower, nearest, higher)
            of_pair = torch.where(is_lower, best, of_pair)
            similarity.masked_fill_(mutual.unsqueeze(2) | mutual.unsqueeze(1), -torch.inf)
            if found % _ROUNDS_PER_CHECK == 0 and _is_complete(of_pair, similarity, r):
                break
        order = of_pair.argsort(dim=-1, descending=True, stable=True)
        merges = torch.zeros_like(of_pair, dtype=torch.bool).scatter_(1, order[:, :r], True)
        partner = torch.where(merges, higher, positions)  # a pair's higher token, of its lower one
        if self.lower_stays:
            lower = positions.expand_as(partner)
            partner = lower.scatter_reduce(1, partner, lower, "amin")
        return Matching.into(partner)


def _similarity_of_pairs(metric: Tensor, prefix: int) -> Tensor:
    """Return the cosine of all pairs ``(B, N, N)``, symmetric; -inf for what cannot be a pair."""
    unit = F.normalize(metric, dim=-1)
    above = (unit @ unit.transpose(1, 2)).triu(1)
    positions = torch.arange(metric.shape[1], device=metric.device)
    is_prefix = positions < prefix
    is_no_pair = torch.eye(len(positions), dtype=torch.bool, device=metric.device)
    is_no_pair = is_no_pair | is_prefix | is_prefix.unsqueeze(1)
    return (above + above.transpose(1, 2)).masked_fill_(is_no_pair, -torch.inf)


def _is_complete(of_pair: Tensor, similarity: Tensor, r: int) -> bool:
    """Whether no pair that is left is more similar than the r-th of those found, in any image."""
    rth = of_pair.topk(r, dim=-1).values[:, -1]
    left = similarity.flatten(1).amax(dim=-1)
    return bool((rth >= left).all())
