"""Merging of the most similar pairs, wherever they stand: the other rule to train with.

The paper's rule splits the tokens into two sets and merges across. This one merges ``r`` times the
most similar pair among all tokens that have not merged yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.matching import Matching
from tome_core.merge import accumulation_dtype, merge
from tome_core.merging import Merging
from tome_core.metric import BlockTensors
from tome_core.split import most_mergeable, tokens_left


def all_keys(features: BlockTensors) -> Tensor:
    """Return the keys of all heads side by side, ``(T, H * d)``."""
    dtype = accumulation_dtype(features.after.dtype)
    return features.k.detach().to(dtype).flatten(1)


@dataclass(frozen=True)
class Pairs:
    """``r`` times, the most similar pair of free tokens merges, and neither is free any more.

    Prefix tokens are never free. The token at the lower position merges into the one at the higher
    position. Of equally similar pairs, that with the lowest lower position comes first, then that
    with the lowest higher position. Tokens that stay keep their order.
    """

    def remaining(self, tokens: int, r: int, prefix: int) -> int:
        """Return ``tokens - r``, where r is at most half of the mergeable tokens."""
        return tokens_left(tokens, r, prefix)

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """Match tokens by ``metric (B, N, d)``; see `tome_core.matching.Matcher`."""
        batch, tokens, _ = metric.shape
        unit = F.normalize(metric, dim=-1)  # (B, N, d)
        scores = unit @ unit.transpose(1, 2)  # (B, N, N): row is the lower position
        positions = torch.arange(tokens, device=metric.device)  # (N,)
        allowed = (positions[:, None] < positions[None, :]) & (positions[:, None] >= prefix)
        scores.masked_fill_(~allowed, -torch.inf)

        partner = positions.repeat(batch, 1)  # (B, N)
        for _ in range(min(r, most_mergeable(tokens, prefix))):
            best = scores.flatten(1).argmax(dim=-1, keepdim=True)  # (B, 1)
            lower = best // tokens
            higher = best % tokens
            partner.scatter_(1, lower, higher)
            for taken in (lower, higher):
                # Unlike an indexed assignment of a number, this does not wait for a GPU.
                rows = taken.unsqueeze(2).expand(-1, 1, tokens)  # (B, 1, N)
                scores.scatter_(1, rows, -torch.inf)
                columns = taken.unsqueeze(1).expand(-1, tokens, 1)  # (B, N, 1)
                scores.scatter_(2, columns, -torch.inf)
        return Matching.into(partner)


def mean_with_norm(
    tokens: Tensor, sizes: Tensor, matching: Matching, length: int
) -> tuple[Tensor, Tensor]:
    """Return the size-weighted mean, its norm set to the size-weighted mean of the norms.

    Arguments and result are those of `tome_core.merge.merge`.
    """
    mean, merged_sizes = merge(tokens, sizes, matching.dest, length)  # (B, length, D)
    exact = mean.to(sizes.dtype)
    norms = tokens.to(sizes.dtype).norm(dim=-1, keepdim=True)  # (B, N, 1)
    wanted, _ = merge(norms, sizes, matching.dest, length)  # (B, length, 1)
    found = exact.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
    return (exact * (wanted / found)).to(tokens.dtype), merged_sizes


def pairs_of(merging: Merging) -> Merging:
    """Return ``merging`` with this rule instead of its own."""
    return replace(merging, matcher=Pairs(), metric=all_keys, combine=mean_with_norm)
