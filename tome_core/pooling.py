"""Pooling of merged tokens: an average over patches must count a token as often as it has patches."""

from __future__ import annotations

from torch import Tensor, nn

POOLS = ("token", "avg", "max", "avgmax")


def pool(kind: str, tokens: Tensor, sizes: Tensor | None, skip: int) -> Tensor:
    """Pool ``tokens (B, N, D)`` to ``(B, D)``; equals timm's ``global_pool_nlc`` where all sizes are 1.

    Args:
        kind: one of `POOLS`. The maximum is the same whatever the sizes.
        sizes: ``(B, N)``, or None for all ones.
        skip: how many tokens at the front take no part (``token`` reads the first in any case).
    """
    if kind == "token":
        return tokens[:, 0]
    tokens = tokens[:, skip:]
    sizes = None if sizes is None else sizes[:, skip:]
    if kind == "max":
        return tokens.amax(dim=1)
    average = weighted_average(tokens, sizes)
    return average if kind == "avg" else 0.5 * (tokens.amax(dim=1) + average)


def attention_pool(module: nn.Module, tokens: Tensor, sizes: Tensor | None) -> Tensor:
    """Pool ``tokens (B, N, D)`` to ``(B, D)`` with timm's attention pool ``module``.

    A token of size s weighs as s equal ones would: ``log(s)`` is added to the logits of its key
    (paper, equation 1).
    """
    mask = None if sizes is None else sizes.log().to(tokens.dtype)[:, None, None, :]
    return module(tokens, attn_mask=mask)


def weighted_average(tokens: Tensor, sizes: Tensor | None) -> Tensor:
    """``(B, N, D)`` -> ``(B, D)``: the mean, each token weighted by its size ``(B, N)``, in the sizes' precision."""
    if sizes is None:
        return tokens.mean(dim=1)
    weights = (sizes / sizes.sum(dim=1, keepdim=True)).unsqueeze(-1)
    return (tokens.to(sizes.dtype) * weights).sum(dim=1).to(tokens.dtype)
