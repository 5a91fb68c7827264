"""Proportional attention: a token that stands for s patches gets the attention of s tokens (paper, equation 1)."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Attend(Protocol):
    """A way to compute attention over the tokens of images of one length."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, dropout: float) -> Tensor:
        """``q, k, v (B, H, N, d)`` and ``sizes (B, N)`` or None for all ones -> ``(B, N, H * d)``."""
        ...


def fused_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, dropout: float) -> Tensor:
    """The reference: PyTorch's own attention, with ``log(size)`` as an additive mask on the keys."""
    mask = None if sizes is None else sizes.log().to(q.dtype)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, dropout: float) -> Tensor:
    """Two products and a softmax. In bfloat16 on a CPU this is faster than the fused kernel."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if sizes is not None:
        logits += sizes.log().to(q.dtype)[:, None, None, :]
    weights = logits.softmax(dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return (weights @ v).transpose(1, 2).flatten(2)
