"""Which token merges into which, for one block (paper, section 3).

A matching is one map ``dest`` from old to new positions. Merging is a segment sum over the map,
unmerging is a gather by it, and tracing composes two maps. A mask says which tokens merge. The
others stay, and a merged token has the input position of the one that stays.

New positions are ordered ``[prefix tokens, unmerged tokens in order, destinations in order]``. With
`Random`, every token that stays is a possible destination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.split import most_mergeable, split, tokens_left


@dataclass(frozen=True)
class Matching:
    """Where each token goes in one block.

    Attributes:
        dest: old position -> new position, int64 ``(B, N)``.
        merged: whether the token merges into another, which stays, bool ``(B, N)``.
    """

    dest: Tensor
    merged: Tensor

    @classmethod
    def into(cls, partner: Tensor) -> Matching:
        """Return the matching in which the tokens that stay keep their order.

        Args:
            partner: int64 ``(B, N)``, the old position of the token that each one merges into. That
                token must stay. A token that stays is its own partner.
        """
        old_position = torch.arange(partner.shape[1], device=partner.device)  # (N,)
        merged = partner != old_position  # (B, N)
        # Only the entries of tokens that stay are read.
        new_position = (~merged).cumsum(dim=-1) - 1  # (B, N)
        dest = new_position.gather(1, partner)  # (B, N)
        return cls(dest, merged)


class Matcher(Protocol):
    """A way to match tokens: hashable, and the number of tokens left follows from shapes alone."""

    def __hash__(self) -> int: ...

    def remaining(
        self,
        tokens: int,
        r: int,
        prefix: int,
    ) -> int:
        """Return the tokens of one image after a block that may merge ``r > 0`` of ``tokens``."""
        ...

    def __call__(
        self,
        metric: Tensor,
        r: int,
        prefix: int,
    ) -> Matching:
        """Match tokens by ``metric (B, N, d)``, of float32 or float64, as a `Metric` returns it."""
        ...


class AtMostHalf:
    """A matcher that merges ``r`` tokens, or half of the mergeable ones if these are fewer."""

    def remaining(
        self,
        tokens: int,
        r: int,
        prefix: int,
    ) -> int:
        """Return the tokens after a block; see `Matcher`."""
        return tokens_left(tokens, r, prefix)


@dataclass(frozen=True)
class Bipartite(AtMostHalf):
    """Bipartite soft matching (paper, section 3 and appendix D).

    Tokens, prefix tokens included, alternate between sets A and B. Each token of A has an edge to
    its most similar token of B (cosine similarity). The ``r`` most similar pairs merge, and several
    tokens may merge into one. Of equal similarities the lowest index comes first.
    """

    @torch.no_grad()
    def __call__(
        self,
        metric: Tensor,
        r: int,
        prefix: int,
    ) -> Matching:
        """See `Matcher`."""
        tokens = metric.shape[1]
        r = min(r, most_mergeable(tokens, prefix))
        in_a, in_b = split(prefix)

        # Cosine similarity of every token of A and every token of B.
        unit = F.normalize(metric, dim=-1)  # (B, N, d)
        a = unit[:, in_a]  # (B, |A|, d)
        b = unit[:, in_b]  # (B, |B|, d)
        scores = a @ b.transpose(1, 2)  # (B, |A|, |B|)

        # One edge from each token of A, to its most similar token of B.
        similarity, partner = scores.max(dim=-1)  # (B, |A|) each

        # The r most similar edges merge.
        order = similarity.argsort(dim=-1, descending=True, stable=True)  # (B, |A|)
        merged = torch.zeros_like(similarity, dtype=torch.bool)
        merged.scatter_(1, order[:, :r], True)
        first_destination = prefix + similarity.shape[1] - r
        return from_edges(merged, partner, first_destination, tokens, prefix)


def from_edges(
    merged: Tensor,
    partner: Tensor,
    first_destination: int | Tensor,
    tokens: int,
    prefix: int,
) -> Matching:
    """Return the matching of the edges from A to B.

    Args:
        merged: which tokens of A merge, bool ``(B, |A|)``.
        partner: index in B of the token at the other end of each edge, int64 ``(B, |A|)``.
        first_destination: the new position of the first token of B, of all images or ``(B, 1)``.
        tokens: N.
        prefix: number of prefix tokens.
    """
    in_a, in_b = split(prefix)
    old_position = torch.arange(tokens, device=merged.device)  # (N,)
    dest = old_position.repeat(len(merged), 1)  # (B, N)

    # New order: prefix tokens, the tokens of A that stay, then all of B.
    unmerged_position = (~merged).cumsum(dim=-1) + (prefix - 1)  # (B, |A|)
    merged_position = first_destination + partner  # (B, |A|)
    dest[:, in_a] = torch.where(merged, merged_position, unmerged_position)
    dest_of_b = dest[:, in_b]  # (B, |B|), a view
    dest_of_b.copy_(first_destination + old_position[: dest_of_b.shape[1]])

    merged_tokens = torch.zeros_like(dest, dtype=torch.bool)  # (B, N)
    merged_tokens[:, in_a] = merged
    return Matching(dest, merged_tokens)


@dataclass(frozen=True)
class Kth:
    """Every ``k``-th token is a destination; if ``r > 0``, all others merge into the most similar.

    The last tokens, which fill no group of ``k``, stay as they are.
    """

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k must be at least 2, got {self.k}")

    def remaining(
        self,
        tokens: int,
        r: int,
        prefix: int,
    ) -> int:
        """Return the prefix tokens, one token per group of ``k``, and the tokens in no group."""
        groups, rest = divmod(tokens - prefix, self.k)
        return prefix + rest + groups

    @torch.no_grad()
    def __call__(
        self,
        metric: Tensor,
        r: int,
        prefix: int,
    ) -> Matching:
        """See `Matcher`."""
        batch, tokens, _ = metric.shape
        device = metric.device
        groups, rest = divmod(tokens - prefix, self.k)
        dest = torch.arange(tokens, device=device).repeat(batch, 1)  # (B, N)
        merged = torch.zeros_like(dest, dtype=torch.bool)  # (B, N)
        if groups == 0:
            return Matching(dest, merged)
        in_groups = slice(prefix, tokens - rest)
        group_shape = (groups, self.k)

        # The most similar destination of every token that merges, in any group.
        unit = F.normalize(metric[:, in_groups], dim=-1).unflatten(1, group_shape)
        sources = unit[:, :, :-1].flatten(1, 2)  # (B, groups * (k - 1), d)
        destinations = unit[:, :, -1]  # (B, groups, d)
        scores = sources @ destinations.transpose(1, 2)  # (B, groups * (k - 1), groups)
        partner = scores.argmax(dim=-1).unflatten(1, (groups, self.k - 1))

        # New order: prefix tokens, the tokens in no group, then the destinations.
        first_destination = prefix + rest
        grouped_dest = dest[:, in_groups].unflatten(1, group_shape)  # (B, groups, k), a view
        grouped_dest[:, :, :-1] = first_destination + partner
        grouped_dest[:, :, -1] = first_destination + torch.arange(groups, device=device)
        dest[:, tokens - rest :] = prefix + torch.arange(rest, device=device)

        grouped_merged = merged[:, in_groups].unflatten(1, group_shape)  # (B, groups, k), a view
        grouped_merged[:, :, :-1] = True
        return Matching(dest, merged)


@dataclass(frozen=True)
class Random(AtMostHalf):
    """``r`` random tokens merge, each into the most similar token that stays."""

    @torch.no_grad()
    def __call__(
        self,
        metric: Tensor,
        r: int,
        prefix: int,
    ) -> Matching:
        """See `Matcher`."""
        batch, tokens, _ = metric.shape
        device = metric.device
        r = min(r, most_mergeable(tokens, prefix))

        # Draw r tokens per image.
        keys = torch.rand(batch, tokens - prefix, device=device)  # (B, N - prefix)
        order = keys.argsort(dim=-1) + prefix  # (B, N - prefix)
        merged = torch.zeros(batch, tokens, dtype=torch.bool, device=device)  # (B, N)
        merged.scatter_(1, order[:, :r], True)

        # Prefix tokens and tokens that merge are no destinations.
        unit = F.normalize(metric, dim=-1)  # (B, N, d)
        scores = unit @ unit.transpose(1, 2)  # (B, N, N)
        scores[:, :, :prefix] = -torch.inf
        scores.masked_fill_(merged.unsqueeze(1), -torch.inf)

        most_similar = scores.argmax(dim=-1)  # (B, N)
        own_position = torch.arange(tokens, device=device)  # (N,)
        partner = torch.where(merged, most_similar, own_position)  # (B, N)
        return Matching.into(partner)
