"""Merging that reads more than a metric: sizes, the class token's attention, the block before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from research.beyond.matching import match_by_scores, symmetric
from tome_core.backends.reference import ReferenceStrategy
from tome_core.matching import AtMostHalf, Matching
from tome_core.merge import norm_preserving_mean, staying_tokens
from tome_core.metric import BlockTensors
from tome_core.pairs import Pairs
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.split import most_mergeable


@dataclass(frozen=True)
class Known:
    """What is known of the tokens of a batch when they merge.

    Attributes:
        sizes: patches in each, ``(B, N)``.
        attention: of the class token to each, the mean over the heads, ``(B, N)``.
    """

    sizes: Tensor
    attention: Tensor


# Scores of all pairs (B, P, P) and what is known of these tokens (B, P) -> other scores.
Adjust = Callable[[Tensor, Known], Tensor]


def as_they_are(scores: Tensor, known: Known) -> Tensor:
    """Change nothing."""
    return scores


def ward(scores: Tensor, known: Known) -> Tensor:
    """Multiply distances by ``a * b / (a + b)`` of the sizes, as Ward's clustering does."""
    return scores * _reduced(known.sizes)


def attention_cost(scores: Tensor, known: Known) -> Tensor:
    """Multiply distances by ``a * b / (a + b)`` of the class token's attention."""
    return scores * _reduced(known.attention)


def protect(scores: Tensor, known: Known, share: float) -> Tensor:
    """Merge the ``share`` of tokens with the most attention only where no others are left."""
    attention = known.attention
    count = int(share * attention.shape[1])
    most = attention.topk(count, dim=-1).indices  # (B, count)
    is_protected = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, most, True)
    either = is_protected.unsqueeze(1) | is_protected.unsqueeze(2)
    return scores.masked_fill(either, torch.finfo(scores.dtype).min)


def _reduced(mass: Tensor) -> Tensor:
    """Return ``a * b / (a + b)`` of all pairs, ``(B, P)`` -> ``(B, P, P)``."""
    first = mass.unsqueeze(1)
    second = mass.unsqueeze(2)
    return first * second / (first + second)


@dataclass(frozen=True)
class InformedStrategy(ReferenceStrategy):
    """Pairs by scores that sizes or attention change; all images have one schedule.

    The model's matcher is a `Pairs`, the prefix begins with the class token.

    Attributes:
        adjust: changes its scores.
        weigh_by_attention: a merged token is the mean of its tokens weighted by size and attention,
            not by size alone.
    """

    adjust: Adjust = as_they_are
    weigh_by_attention: bool = False

    def merge(self, context: BlockContext, features: BlockTensors) -> Packed:
        """See `tome_core.execution.Strategy`."""
        if not context.merges:
            return context.packed
        merging = context.merging
        assert isinstance(merging.matcher, Pairs)
        known = look(context, features)
        informed = replace(merging, matcher=_Adjusted(merging.matcher, self.adjust, known))
        if self.weigh_by_attention:
            informed = replace(informed, combine=partial(attention_weighted_mean, known.attention))
        return super().merge(replace(context, merging=informed), features)


@dataclass(frozen=True, eq=False)
class _Adjusted(AtMostHalf):
    """A matcher for one block of one batch."""

    pairs: Pairs
    adjust: Adjust
    known: Known

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        known = Known(self.known.sizes[:, prefix:], self.known.attention[:, prefix:])
        scores = self.adjust(self.pairs.similarities(metric[:, prefix:]), known)
        return match_by_scores(symmetric(scores), r, prefix)


def look(context: BlockContext, features: BlockTensors) -> Known:
    """Return what is known of the tokens of a batch of one schedule."""
    ((_, q),) = context.views(features.q)  # (B, N, H, d)
    ((_, k),) = context.views(features.k)
    (sizes,) = context.packed.sizes
    queries = q[:, 0].detach().float() * q.shape[-1] ** -0.5  # (B, H, d), of the class token
    logits = torch.einsum("bhd,bnhd->bhn", queries, k.detach().float())
    if sizes is None:
        sizes = logits.new_ones(k.shape[:2])
    if context.merging.prop_attn:
        logits = logits + sizes.log().unsqueeze(1)
    return Known(sizes, logits.softmax(dim=-1).mean(dim=1))


def attention_weighted_mean(
    attention: Tensor, tokens: Tensor, sizes: Tensor, matching: Matching, length: int
) -> tuple[Tensor, Tensor]:
    """Combine tokens as `norm_preserving_mean`, weighted by attention too; sizes add up."""
    combined, _ = norm_preserving_mean(tokens, sizes * attention, matching, length)
    sums = sizes.new_zeros(len(sizes), length)
    return combined, sums.scatter_add(1, matching.dest, sizes)


@dataclass(frozen=True)
class ReusingStrategy(ReferenceStrategy):
    """Compares tokens in every second block; the next one reuses the scores of what has stayed.

    A merged token has the scores of the one of its pair that stays. Not for several threads: the
    scores are kept between two blocks. All images have one schedule.
    """

    _kept: list[Tensor] = field(default_factory=list, compare=False)

    def merge(self, context: BlockContext, features: BlockTensors) -> Packed:
        """See `tome_core.execution.Strategy`."""
        is_first = context.index % 2 == 0
        kept = None if is_first or not self._kept else self._kept[0]
        self._kept.clear()
        if not context.merges:
            return context.packed
        merging = context.merging
        assert isinstance(merging.matcher, Pairs)
        matcher = _Remembering(merging.matcher, kept, self._kept if is_first else [])
        return super().merge(replace(context, merging=replace(merging, matcher=matcher)), features)


@dataclass(frozen=True, eq=False)
class _Remembering(AtMostHalf):
    """A matcher for one block of one batch: uses ``kept`` scores, and appends those that remain."""

    pairs: Pairs
    kept: Tensor | None
    remaining_scores: list[Tensor]

    @torch.no_grad()
    def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
        scores = self.kept
        if scores is None:
            scores = self.pairs.similarities(metric[:, prefix:])
        matching = match_by_scores(scores.clone(), r, prefix)
        tokens = metric.shape[1]
        length = tokens - min(r, most_mergeable(tokens, prefix))
        staying = staying_tokens(matching.dest, matching.merged, length)[:, prefix:] - prefix
        rows = scores.gather(1, staying.unsqueeze(2).expand(-1, -1, scores.shape[2]))
        columns = staying.unsqueeze(1).expand(-1, staying.shape[1], -1)
        self.remaining_scores.append(rows.gather(2, columns))
        return matching
