"""Bipartite soft matching with another distance, partition or order than the paper's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from research.ablations.pruning import class_attention
from tome_core.matching import AtMostHalf, Matching
from tome_core.split import most_mergeable, split

# Tokens (B, |A|, d) and (B, |B|, d) -> how alike each pair is, (B, |A|, |B|).
Similarity = Callable[[Tensor, Tensor], Tensor]
# Metric (B, N, d) and prefix -> the positions in A and in B, (B, |A|) and (B, |B|).
Partition = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The paper's choice."""
    return dot(F.normalize(a, dim=-1), F.normalize(b, dim=-1))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The dot product, by which long tokens are alike to many."""
    return a @ b.transpose(1, 2)


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Less the Euclidean distance."""
    return -torch.cdist(a, b)


def ward(a: Tensor, b: Tensor) -> Tensor:
    """Less the cost of Ward's clustering, of normalised keys with sizes after them.

    It is what joining the two adds to the squared distances from the means, by which large tokens
    stay apart: ``s_a * s_b / (s_a + s_b)`` times one less the cosine.
    """
    sizes_a = a[..., -1].unsqueeze(2)  # (B, |A|, 1)
    sizes_b = b[..., -1].unsqueeze(1)  # (B, 1, |B|)
    weight = sizes_a * sizes_b / (sizes_a + sizes_b)  # (B, |A|, |B|)
    return weight * (cosine(a[..., :-1], b[..., :-1]) - 1)


def alternating(metric: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """The paper's choice: even positions and odd ones, prefix tokens counted but left out."""
    batch, tokens = metric.shape[:2]
    positions = torch.arange(tokens, device=metric.device)
    in_a, in_b = split(prefix)
    return positions[in_a].repeat(batch, 1), positions[in_b].repeat(batch, 1)


def sequential(metric: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """The first half and the second."""
    batch, tokens = metric.shape[:2]
    positions = torch.arange(tokens, device=metric.device).repeat(batch, 1)
    half = prefix + most_mergeable(tokens, prefix)
    return positions[:, prefix:half], positions[:, half:]


def shuffled(metric: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Two halves drawn anew for each image and block, from torch's generator."""
    batch, tokens = metric.shape[:2]
    order = prefix + torch.rand(batch, tokens - prefix).argsort(dim=-1).to(metric.device)
    half = most_mergeable(tokens, prefix)
    return order[:, :half], order[:, half:]


def by_energy(metric: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Every second token in the order of their energy, most alike to all others first.

    Energy is the mean cosine to all tokens. PiToMe (arXiv 2405.16148) chooses by it what may merge.
    """
    unit = F.normalize(metric[:, prefix:], dim=-1)
    energy = (unit @ unit.mean(dim=1).unsqueeze(-1)).squeeze(-1)  # (B, N - prefix)
    order = prefix + energy.argsort(dim=-1, descending=True, stable=True)
    return order[:, 1::2], order[:, ::2]


@dataclass(frozen=True)
class SoftBipartite(AtMostHalf):
    """`tome_core.Bipartite` with other partitions; its defaults differ in token order alone."""

    similarity: Similarity = cosine
    partition: Partition = alternating

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `tome_core.Matcher`."""
        width = metric.shape[2]
        in_a, in_b = self.partition(metric, prefix)
        a, b = (metric.gather(1, part.unsqueeze(-1).expand(-1, -1, width)) for part in (in_a, in_b))
        similarity, best = self.similarity(a, b).max(dim=-1)
        return merge_best(similarity, in_a, in_b.gather(1, best), metric.shape[1], r, prefix)


@dataclass(frozen=True)
class Protected(AtMostHalf):
    """`tome_core.Bipartite`, but what the class token attends to most is the last to merge.

    Attributes:
        share: of the tokens that are protected.
    """

    share: float

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `tome_core.Matcher`; ``metric`` as `metrics.queries_and_keys` returns it."""
        tokens = metric.shape[1]
        attention = class_attention(metric, prefix)  # (B, N - prefix)
        count = int(self.share * attention.shape[1])
        protected = torch.zeros(metric.shape[:2], dtype=torch.bool, device=metric.device)
        protected.scatter_(1, prefix + attention.topk(count, dim=-1).indices, True)

        unit = F.normalize(metric[:, :, 1].mean(dim=2), dim=-1)  # (B, N, d)
        in_a, in_b = split(prefix)
        similarity, best = dot(unit[:, in_a], unit[:, in_b]).max(dim=-1)
        similarity.masked_fill_(protected[:, in_a], -torch.inf)
        positions_a, positions_b = alternating(unit, prefix)
        return merge_best(similarity, positions_a, positions_b.gather(1, best), tokens, r, prefix)


def merge_best(
    similarity: Tensor, source: Tensor, into: Tensor, tokens: int, r: int, prefix: int
) -> Matching:
    """Return the matching of the ``r`` most similar edges, or of as many as a block can merge.

    Args:
        similarity: of each edge, ``(B, edges)``.
        source, into: the positions at its ends, ``(B, edges)``.
        tokens: N.
        prefix: number of prefix tokens.
    """
    r = min(r, most_mergeable(tokens, prefix))
    chosen = similarity.argsort(dim=-1, descending=True, stable=True)[:, :r]
    partner = torch.arange(tokens, device=source.device).repeat(len(source), 1)
    return Matching.into(partner.scatter_(1, source.gather(1, chosen), into.gather(1, chosen)))
