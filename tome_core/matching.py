"""Which token goes into which, for one block.

A matching is one map, ``dest``: old position -> new position. Merging is a segment sum over it,
unmerging a gather by it, tracing a source the composition of two. Beside it stands which tokens
merge, and so which stay, since a merged token keeps the place of the one that stays. New positions
are ordered ``[prefix tokens, unmerged in order, destinations in order]``; with `Random`, every
token that stays is a possible destination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.schedule import most_mergeable


@dataclass(frozen=True)
class Matching:
    """Which token goes where.

    Attributes:
        dest: old position -> new position, int64 ``(B, N)``.
        merged: whether the token merges into another, which stays, bool ``(B, N)``.
    """

    dest: Tensor
    merged: Tensor

    @classmethod
    def into(cls, partner: Tensor) -> Matching:
        """From the old position of the token that each merges into, which stays: its own where it stays itself.

        ``partner`` is int64 ``(B, N)``. The tokens that stay keep their order.
        """
        merged = partner != torch.arange(partner.shape[1], device=partner.device)
        return cls(((~merged).cumsum(dim=-1) - 1).gather(1, partner), merged)


class Matcher(Protocol):
    """What the model asks of a way to match: hashable, and the number of tokens left follows from shapes alone."""

    def __hash__(self) -> int: ...

    def remaining(self, tokens: int, r: int, prefix: int) -> int:
        """Tokens of one image after a block that is asked to merge ``r > 0`` of ``tokens``."""
        ...

    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """Match by ``metric (B, N, d)``, of float32 or float64: what a `Metric` says of each token."""
        ...


@dataclass(frozen=True)
class Bipartite:
    """Bipartite soft matching (paper, section 3 and appendix D).

    Tokens alternate between sets A and B, prefix tokens included; each token of A is drawn to its
    most similar token of B (cosine), and the ``r`` most similar pairs merge. Several may merge into
    one. Ties: the lowest index first.
    """

    def remaining(self, tokens: int, r: int, prefix: int) -> int:
        """``tokens - r``, but never more than half of the mergeable tokens go."""
        return tokens - min(r, most_mergeable(tokens, prefix))

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `Matcher`."""
        tokens = metric.shape[1]
        r = min(r, most_mergeable(tokens, prefix))
        # Prefix tokens stay out of the similarity matrix, which protects them, but they count in
        # the alternation.
        in_a = slice(prefix + prefix % 2, None, 2)
        in_b = slice(prefix + 1 - prefix % 2, None, 2)
        unit = F.normalize(metric, dim=-1)
        similarity, partner = (unit[:, in_a] @ unit[:, in_b].transpose(1, 2)).max(dim=-1)
        order = similarity.argsort(dim=-1, descending=True, stable=True)
        merged = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, order[:, :r], True)
        return _alternating(merged, partner, r, tokens, prefix)


def _alternating(merged: Tensor, partner: Tensor, r: int, tokens: int, prefix: int) -> Matching:
    """The matching from which tokens of A merge, ``(B, |A|)``, and into which token of B, ``(B, |A|)``."""
    first_destination = prefix + merged.shape[1] - r
    dest = torch.arange(tokens, device=merged.device).repeat(len(merged), 1)
    unmerged_position = (~merged).cumsum(dim=-1) + (prefix - 1)
    dest[:, prefix + prefix % 2 :: 2] = torch.where(
        merged, first_destination + partner, unmerged_position
    )
    destinations = dest[:, prefix + 1 - prefix % 2 :: 2]
    destinations.copy_(
        first_destination + torch.arange(destinations.shape[1], device=merged.device)
    )
    merged_of_all = torch.zeros_like(dest, dtype=torch.bool)
    merged_of_all[:, prefix + prefix % 2 :: 2] = merged
    return Matching(dest, merged_of_all)


@dataclass(frozen=True)
class Kth:
    """Every ``k``-th token is a destination, all others merge into the most similar one, wherever ``r > 0``.

    The tokens that fill no group of ``k``, at the end, stay as they are.
    """

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k must be at least 2, got {self.k}")

    def remaining(self, tokens: int, r: int, prefix: int) -> int:
        """One token for every ``k`` mergeable ones, and the rest of the division."""
        groups, rest = divmod(tokens - prefix, self.k)
        return prefix + rest + groups

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `Matcher`."""
        batch, tokens, _ = metric.shape
        groups, rest = divmod(tokens - prefix, self.k)
        dest = torch.arange(tokens, device=metric.device).repeat(batch, 1)
        merged = torch.zeros_like(dest, dtype=torch.bool)
        if not groups:
            return Matching(dest, merged)
        end = tokens - rest
        grouped = F.normalize(metric[:, prefix:end], dim=-1).unflatten(1, (groups, self.k))
        sources = grouped[:, :, :-1].flatten(1, 2)
        destinations = grouped[:, :, -1]
        partner = (sources @ destinations.transpose(1, 2)).argmax(dim=-1)
        in_groups = dest[:, prefix:end].unflatten(1, (groups, self.k))
        in_groups[:, :, :-1] = prefix + rest + partner.unflatten(1, (groups, self.k - 1))
        in_groups[:, :, -1] = prefix + rest + torch.arange(groups, device=metric.device)
        dest[:, end:] = prefix + torch.arange(rest, device=metric.device)
        merged[:, prefix:end].unflatten(1, (groups, self.k))[:, :, :-1] = True
        return Matching(dest, merged)


@dataclass(frozen=True)
class Random:
    """``r`` tokens drawn at random (torch's generator) merge, each into the most similar of the tokens not drawn."""

    def remaining(self, tokens: int, r: int, prefix: int) -> int:
        """As for `Bipartite`."""
        return tokens - min(r, most_mergeable(tokens, prefix))

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `Matcher`."""
        batch, tokens, _ = metric.shape
        r = min(r, most_mergeable(tokens, prefix))
        order = torch.rand(batch, tokens - prefix, device=metric.device).argsort(dim=-1) + prefix
        merged = torch.zeros(batch, tokens, dtype=torch.bool, device=metric.device).scatter_(
            1, order[:, :r], True
        )
        unit = F.normalize(metric, dim=-1)
        similarity = unit @ unit.transpose(1, 2)
        similarity[:, :, :prefix] = -torch.inf
        similarity.masked_fill_(merged.unsqueeze(1), -torch.inf)
        itself = torch.arange(tokens, device=metric.device)
        return Matching.into(torch.where(merged, similarity.argmax(dim=-1), itself))
