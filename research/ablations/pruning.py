"""Pruning as a matching: pruned tokens merge into one that takes nothing (`combining.drop`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core.matching import AtMostHalf, Matching
from tome_core.split import most_mergeable

# What the metric says of all tokens (B, N, ...) and prefix -> a score of each other token (B, N -
# prefix).
Score = Callable[[Tensor, int], Tensor]


def random_score(metric: Tensor, prefix: int) -> Tensor:
    """A random number for each, from torch's generator."""
    return torch.rand(metric.shape[0], metric.shape[1] - prefix, device=metric.device)


def class_attention(metric: Tensor, prefix: int) -> Tensor:
    """Attention of the class token to each token, averaged over the heads (B, N).

    All tokens count once, since a pruned token leaves its patches to nobody.

    Raises:
        ValueError: the model has no class token.
    """
    if not prefix:
        raise ValueError("pruning by the class token's attention needs a model with a class token")
    q = metric[:, 0, 0]
    k = metric[:, :, 1]
    logits = torch.einsum("bhd,bnhd->bhn", q * q.shape[-1] ** -0.5, k)
    return logits.softmax(dim=-1).mean(dim=1)[:, prefix:]


@dataclass(frozen=True)
class Prune(AtMostHalf):
    """Prune the ``r`` tokens of the lowest score, into the first token that stays."""

    score: Score

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        """See `tome_core.Matcher`."""
        batch, tokens = metric.shape[:2]
        r = min(r, most_mergeable(tokens, prefix))
        order = prefix + self.score(metric, prefix).argsort(dim=-1, stable=True)
        partner = torch.arange(tokens, device=metric.device).repeat(batch, 1)
        heir = order[:, r:].amin(dim=-1, keepdim=True).expand(-1, r)
        return Matching.into(partner.scatter_(1, order[:, :r], heir))
