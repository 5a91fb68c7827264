"""Bipartite soft matching with another distance or another partition than the paper's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.matching import AtMostHalf, Matching
from tome_core.split import most_mergeable, split

# Tokens (B, |A|, d) and (B, |B|, d) -> how alike each pair is, (B, |A|, |B|).
Similarity = Callable[[Tensor, Tensor], Tensor]
# (batch, tokens, prefix) -> the positions in A and in B, (B, |A|) and (B, |B|), on the CPU.
Partition = Callable[[int, int, int], tuple[Tensor, Tensor]]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The paper's choice."""
    return dot(F.normalize(a, dim=-1), F.normalize(b, dim=-1))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The dot product, by which long tokens are alike to many."""
    return a @ b.transpose(1, 2)


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Less the Euclidean distance."""
    return -torch.cdist(a, b)


def alternating(batch: int, tokens: int, prefix: int) -> tuple[Tensor, Tensor]:
    """The paper's choice: even positions and odd ones, prefix tokens counted but left out."""
    positions = torch.arange(tokens)
    in_a, in_b = split(prefix)
    return positions[in_a].repeat(batch, 1), positions[in_b].repeat(batch, 1)


def sequential(batch: int, tokens: int, prefix: int) -> tuple[Tensor, Tensor]:
    """The first half and the second."""
    half = prefix + most_mergeable(tokens, prefix)
    return torch.arange(prefix, half).repeat(batch, 1), torch.arange(half, tokens).repeat(batch, 1)


def shuffled(batch: int, tokens: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Two halves drawn anew for each image and block, from torch's generator."""
    order = prefix + torch.rand(batch, tokens - prefix).argsort(dim=-1)
    half = most_mergeable(tokens, prefix)
    return order[:, :half], order[:, half:]


@dataclass(frozen=True)
class SoftBipartite(AtMostHalf):
    """`tome_core.Bipartite` with other partitions; its defaults differ in token order alone."""

    similarity: Similarity = cosine
    partition: Partition = alternating

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `tome_core.Matcher`."""
        batch, tokens, width = metric.shape
        r = min(r, most_mergeable(tokens, prefix))
        in_a, in_b = (part.to(metric.device) for part in self.partition(batch, tokens, prefix))
        a, b = (metric.gather(1, part.unsqueeze(-1).expand(-1, -1, width)) for part in (in_a, in_b))
        similarity, best = self.similarity(a, b).max(dim=-1)
        chosen = similarity.argsort(dim=-1, descending=True, stable=True)[:, :r]
        partner = torch.arange(tokens, device=metric.device).repeat(batch, 1)
        into = in_b.gather(1, best.gather(1, chosen))
        return Matching.into(partner.scatter_(1, in_a.gather(1, chosen), into))
