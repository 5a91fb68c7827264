"""Matching by k-means, over which bipartite matching was chosen for its speed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.matching import AtMostHalf, Matching


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
