"""How tokens may become one instead of by their weighted mean (see `tome_core.merge.Combine`)."""

from __future__ import annotations

import torch
from torch import Tensor

from tome_core.matching import Matching
from tome_core.merge import merge, staying_tokens


def plain_mean(
    tokens: Tensor, sizes: Tensor, matching: Matching, length: int
) -> tuple[Tensor, Tensor]:
    """Each token counts once, however many patches it stands for."""
    mean, _ = merge(tokens, torch.ones_like(sizes), matching.dest, length)
    return mean, _summed(sizes, matching, length)


def maximum(
    tokens: Tensor, sizes: Tensor, matching: Matching, length: int
) -> tuple[Tensor, Tensor]:
    """The largest value in each channel."""
    batch, _, dim = tokens.shape
    index = matching.dest.unsqueeze(-1).expand(-1, -1, dim)
    lowest = tokens.new_full((batch, length, dim), -torch.inf)
    return lowest.scatter_reduce(1, index, tokens, "amax"), _summed(sizes, matching, length)


def keep_one(
    tokens: Tensor, sizes: Tensor, matching: Matching, length: int
) -> tuple[Tensor, Tensor]:
    """The token that stays, as it is, which then stands for the patches of all."""
    return _staying(tokens, matching, length), _summed(sizes, matching, length)


def drop(tokens: Tensor, sizes: Tensor, matching: Matching, length: int) -> tuple[Tensor, Tensor]:
    """Pruning: keep the token that stays and its own patches; drop what would merge into it."""
    return _staying(tokens, matching, length), _staying(
        sizes.unsqueeze(-1), matching, length
    ).squeeze(-1)


def _staying(values: Tensor, matching: Matching, length: int) -> Tensor:
    index = staying_tokens(matching.dest, matching.merged, length)
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _summed(sizes: Tensor, matching: Matching, length: int) -> Tensor:
    return sizes.new_zeros(len(sizes), length).scatter_add(1, matching.dest, sizes)
