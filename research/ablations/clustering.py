"""Matching by what bipartite matching was chosen over for its speed: k-means, and greedy pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from research.ablations.limit import AtMostHalf
from tome_core.matching import Matching
from tome_core.split import most_mergeable


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

    Attributes:
        lower_stays: whether the token at the lower position stays, or the other one.
    """

    lower_stays: bool = True

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `tome_core.Matcher`."""
        batch, tokens, _ = metric.shape
        unit = F.normalize(metric, dim=-1)
        positions = torch.arange(tokens, device=metric.device)
        is_pair = (positions[:, None] < positions) & (positions[:, None] >= prefix)
        similarity = (unit @ unit.transpose(1, 2)).masked_fill_(~is_pair, -torch.inf)  # (B, N, N)
        partner = positions.repeat(batch, 1)
        for _ in range(min(r, most_mergeable(tokens, prefix))):
            best = similarity.flatten(1).argmax(dim=-1, keepdim=True)  # (B, 1)
            pair = (best // tokens, best % tokens)
            staying, merging = pair if self.lower_stays else reversed(pair)
            partner.scatter_(1, merging, staying)
            for token in pair:
                # Unlike an indexed assignment of a number, this does not wait for a GPU.
                row = token.unsqueeze(2).expand(-1, 1, tokens)
                similarity.scatter_(1, row, -torch.inf)
                column = token.unsqueeze(1).expand(-1, tokens, 1)
                similarity.scatter_(2, column, -torch.inf)
        return Matching.into(partner)
