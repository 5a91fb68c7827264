"""Applying a matching: merge tokens, undo it, and follow where each token went. Pure functions over ``dest`` maps."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tome_core.matching import Matching


class Combine(Protocol):
    """A way to make one token of those that share a destination."""

    def __call__(
        self, tokens: Tensor, sizes: Tensor, matching: Matching, length: int
    ) -> tuple[Tensor, Tensor]:
        """As `merge`, with all of the matching: which token stays at each of the ``length`` positions, too."""
        ...


def weighted_mean(
    tokens: Tensor, sizes: Tensor, matching: Matching, length: int
) -> tuple[Tensor, Tensor]:
    """The paper's `Combine`: see `merge`."""
    return merge(tokens, sizes, matching.dest, length)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that metric, sizes and weighted sums are computed in: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def merge(tokens: Tensor, sizes: Tensor, dest: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that share a destination, weighted by size (paper, section 3: "Tracking token size").

    Args:
        tokens: ``(B, N, D)``.
        sizes: ``(B, N)``, in the accumulation dtype.
        dest: ``(B, N)``, values in ``[0, length)``, every one of them taken.

    Returns:
        Merged tokens ``(B, length, D)`` in the dtype of ``tokens`` and their sizes ``(B, length)``.
    """
    batch, _, dim = tokens.shape
    merged_sizes = sizes.new_zeros(batch, length).scatter_add(1, dest, sizes)
    weighted = tokens.to(sizes.dtype) * sizes.unsqueeze(-1)
    sums = weighted.new_zeros(batch, length, dim).scatter_add(
        1, dest.unsqueeze(-1).expand(-1, -1, dim), weighted
    )
    return (sums / merged_sizes.unsqueeze(-1)).to(tokens.dtype), merged_sizes


def stayed(dest: Tensor, merged: Tensor, length: int) -> Tensor:
    """The old position, int64 ``(B, length)``, of the token that stays at each new one; see `Matching`."""
    old = torch.arange(dest.shape[1], device=dest.device).expand_as(dest)
    # Merged tokens are written to one place too many, which is then cut off.
    place = torch.where(merged, length, dest)
    return dest.new_zeros(len(dest), length + 1).scatter_(1, place, old)[:, :length]


def unmerge(tokens: Tensor, source: Tensor) -> Tensor:
    """Give every input token its final token back: ``(B, N, D)`` and ``(B, N0)`` -> ``(B, N0, D)``."""
    return tokens.gather(1, source.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def compose(source: Tensor, dest: Tensor) -> Tensor:
    """Where each input token is after one more matching: ``(B, N0)`` and ``(B, N)`` -> ``(B, N0)``."""
    return dest.gather(1, source)
