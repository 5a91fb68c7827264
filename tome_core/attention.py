"""Proportional attention: a token of s patches counts as s equal tokens (paper, equation 1)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attend(Protocol):
    """A way to compute attention over the tokens of images of one length."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sizes: Tensor | None,
        dropout: float,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Compute attention within each image.

        Args:
            q: queries ``(B, H, N, d)``.
            k: keys ``(B, H, N, d)``.
            v: values ``(B, H, N, d)``, whose width may differ from that of queries and keys.
            sizes: ``(B, N)``, or None if all are 1.
            dropout: probability of dropping an attention weight.
            bias: added to the logits for relative positions, ``(B or 1, H, N, N)``.

        Returns:
            ``(B, N, H * d)``, with the ``d`` of the values.
        """
        ...


def logit_bias(
    sizes: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return what is added to the logits: ``log(size)`` of each key, and ``bias`` of each pair.

    None if there is neither.
    """
    if sizes is None:
        return None if bias is None else bias.to(dtype)
    key_bias = sizes.log()[:, None, None, :]  # (B, 1, 1, N)
    if bias is None:
        return key_bias.to(dtype)
    return (key_bias + bias).to(dtype)


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Tensor | None,
    dropout: float,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute attention with PyTorch's own kernel, the reference for all others; see `Attend`."""
    mask = logit_bias(sizes, bias, q.dtype)
    attended = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
    )  # (B, H, N, d)
    return attended.transpose(1, 2).flatten(2)


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Tensor | None,
    dropout: float,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute attention as two products and a softmax; see `Attend`.

    `tome_core.optimize` uses it on a CPU for every dtype. In bfloat16 it is faster there than
    PyTorch's own kernel.
    """
    scale = q.shape[-1] ** -0.5
    logits = (q * scale) @ k.transpose(-2, -1)  # (B, H, N, N)
    mask = logit_bias(sizes, bias, q.dtype)
    if mask is not None:
        logits += mask
    weights = logits.softmax(dim=-1)  # (B, H, N, N)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    attended = weights @ v  # (B, H, N, d)
    return attended.transpose(1, 2).flatten(2)
