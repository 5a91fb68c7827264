"""Pooling of merged tokens: an average over patches counts a token once for each of its patches."""

from __future__ import annotations

from torch import Tensor, nn

POOLS = ("token", "avg", "max", "avgmax")


def pool(
    mode: str,
    tokens: Tensor,
    sizes: Tensor | None,
    skip: int,
) -> Tensor:
    """Pool ``tokens``; equals timm's ``global_pool_nlc`` where all sizes are 1.

    Args:
        mode: one of `POOLS`. Sizes do not change a maximum.
        tokens: ``(B, N, D)``.
        sizes: ``(B, N)``, or None if all are 1.
        skip: number of tokens at the front that are not pooled; ``token`` ignores it.

    Returns:
        ``(B, D)``.
    """
    if mode == "token":
        return tokens[:, 0]
    tokens = tokens[:, skip:]
    if sizes is not None:
        sizes = sizes[:, skip:]
    if mode == "max":
        return tokens.amax(dim=1)
    average = weighted_average(tokens, sizes)  # (B, D)
    if mode == "avg":
        return average
    maximum = tokens.amax(dim=1)  # (B, D)
    return 0.5 * (maximum + average)


def attention_pool(
    module: nn.Module,
    tokens: Tensor,
    sizes: Tensor | None,
) -> Tensor:
    """Pool tokens with timm's attention pool, in which a token of s patches counts s times.

    ``log(s)`` is added to the logits of its key (paper, equation 1).

    Args:
        module: timm's ``AttentionPoolLatent``.
        tokens: ``(B, N, D)``.
        sizes: ``(B, N)``, or None if all are 1.

    Returns:
        ``(B, D)``.
    """
    mask = None
    if sizes is not None:
        key_bias = sizes.log().to(tokens.dtype)  # (B, N)
        mask = key_bias[:, None, None, :]  # (B, 1, 1, N)
    return module(tokens, attn_mask=mask)


def weighted_average(tokens: Tensor, sizes: Tensor | None) -> Tensor:
    """Return the mean token, weighted by size and computed in the dtype of the sizes.

    Args:
        tokens: ``(B, N, D)``.
        sizes: ``(B, N)``, or None if all are 1.

    Returns:
        ``(B, D)``.
    """
    if sizes is None:
        return tokens.mean(dim=1)
    total = sizes.sum(dim=1, keepdim=True)  # (B, 1)
    weights = (sizes / total).unsqueeze(-1)  # (B, N, 1)
    weighted = tokens.to(sizes.dtype) * weights  # (B, N, D)
    return weighted.sum(dim=1).to(tokens.dtype)
