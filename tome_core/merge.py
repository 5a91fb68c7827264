"""Apply a matching: merge tokens, undo it, and follow tokens. Pure functions of ``dest`` maps."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.matching import Matching


class Combine(Protocol):
    """A way to make one token of all tokens with the same destination."""

    def __call__(
        self,
        tokens: Tensor,
        sizes: Tensor,
        matching: Matching,
        length: int,
    ) -> tuple[Tensor, Tensor]:
        """Combine tokens as `merge` does, from a whole matching instead of its ``dest`` map."""
        ...


def weighted_mean(
    tokens: Tensor,
    sizes: Tensor,
    matching: Matching,
    length: int,
) -> tuple[Tensor, Tensor]:
    """Combine tokens as the paper does: see `merge`."""
    return merge(tokens, sizes, matching.dest, length)


def norm_preserving_mean(
    tokens: Tensor,
    sizes: Tensor,
    matching: Matching,
    length: int,
) -> tuple[Tensor, Tensor]:
    """Combine tokens by their weighted mean, as long as they are on average, weighted by size.

    A mean of different vectors is shorter than they are (MLERP of ToFu, arXiv 2312.01026). A token
    that nothing merges into keeps its value to the last bit.
    """
    exact = tokens.to(sizes.dtype)  # (B, N, D)
    with_norms = torch.cat([exact, exact.norm(dim=-1, keepdim=True)], dim=-1)  # (B, N, D + 1)
    merged, merged_sizes = merge(with_norms, sizes, matching.dest, length)
    means = merged[..., :-1]  # (B, length, D)
    mean_norms = merged[..., -1:]  # (B, length, 1)
    scaled = F.normalize(means, dim=-1) * mean_norms  # a mean of zero stays zero

    receives = torch.zeros_like(merged_sizes, dtype=torch.bool)  # (B, length)
    receives.scatter_reduce_(1, matching.dest, matching.merged, "amax")
    alone = unmerge(tokens, staying_tokens(matching.dest, matching.merged, length))
    combined = torch.where(receives.unsqueeze(-1), scaled.to(tokens.dtype), alone)
    return combined, merged_sizes


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of metrics, sizes and weighted sums: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def merge(
    tokens: Tensor,
    sizes: Tensor,
    dest: Tensor,
    length: int,
) -> tuple[Tensor, Tensor]:
    """Average the tokens with the same destination, weighted by size (paper, section 3).

    Args:
        tokens: ``(B, N, D)``.
        sizes: ``(B, N)``, in the accumulation dtype.
        dest: ``(B, N)``, values in ``[0, length)``, each of which occurs.
        length: number of tokens after merging.

    Returns:
        Merged tokens ``(B, length, D)`` in the dtype of ``tokens`` and their sizes ``(B, length)``.
    """
    batch, _, dim = tokens.shape
    # s'_j: the sum of s_i over all i with dest_i = j.
    merged_sizes = sizes.new_zeros(batch, length)
    merged_sizes = merged_sizes.scatter_add(1, dest, sizes)  # (B, length)
    # x'_j: the sum of s_i * x_i over the same i, divided by s'_j.
    weighted = tokens.to(sizes.dtype) * sizes.unsqueeze(-1)  # (B, N, D)
    dest_of_channels = dest.unsqueeze(-1).expand(-1, -1, dim)  # (B, N, D)
    sums = weighted.new_zeros(batch, length, dim)
    sums = sums.scatter_add(1, dest_of_channels, weighted)  # (B, length, D)
    means = sums / merged_sizes.unsqueeze(-1)  # (B, length, D)
    return means.to(tokens.dtype), merged_sizes


def staying_tokens(
    dest: Tensor,
    merged: Tensor,
    length: int,
) -> Tensor:
    """Return the old position of the token that stays at each new position.

    Args:
        dest: as in `Matching`.
        merged: as in `Matching`.
        length: number of tokens after merging.

    Returns:
        int64 ``(B, length)``.
    """
    batch, tokens = dest.shape
    old_position = torch.arange(tokens, device=dest.device).expand_as(dest)  # (B, N)
    # Tokens that merge write to one extra position, which is cut off.
    new_position = torch.where(merged, length, dest)  # (B, N)
    staying = dest.new_zeros(batch, length + 1)
    staying.scatter_(1, new_position, old_position)
    return staying[:, :length]


def unmerge(tokens: Tensor, source: Tensor) -> Tensor:
    """Return the final token of every input token.

    Args:
        tokens: final tokens ``(B, N, D)``.
        source: position of the final token of each input token, ``(B, N0)``.

    Returns:
        ``(B, N0, D)``.
    """
    dim = tokens.shape[-1]
    source_of_channels = source.unsqueeze(-1).expand(-1, -1, dim)  # (B, N0, D)
    return tokens.gather(1, source_of_channels)


def compose(source: Tensor, dest: Tensor) -> Tensor:
    """Return where each input token is after one more matching.

    Args:
        source: position of each input token before the matching, ``(B, N0)``.
        dest: the ``dest`` map of the matching, ``(B, N)``.

    Returns:
        ``(B, N0)``.
    """
    return dest.gather(1, source)
