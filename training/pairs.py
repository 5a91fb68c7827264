"""Merging of the most similar pairs, wherever they stand: the other rule to train with.

The paper's rule splits the tokens into two sets and merges across. This one merges ``r`` times the
most similar pair among all tokens that have not merged yet, by the keys of all heads. The token at
the lower position merges into the one at the higher position.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from research.ablations.clustering import Greedy
from research.ablations.metrics import all_keys
from tome_core.matching import Matching
from tome_core.merge import merge
from tome_core.merging import Merging


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
    return replace(
        merging, matcher=Greedy(lower_stays=False), metric=all_keys, combine=mean_with_norm
    )
