"""Proportional attention: a token that stands for s patches gets the attention of s tokens (paper, equation 1)."""

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
        """Attention of tokens of one length.

        Args:
            q, k, v: ``(B, H, N, d)``; values may be of another width than queries and keys.
            sizes: ``(B, N)``, or None for all ones.
            dropout: probability of dropping an attention weight.
            bias: what relative positions add to the logits, ``(B or 1, H, N, N)``.

        Returns:
            ``(B, N, H * d)``, with the ``d`` of the values.
        """
        ...


def logit_bias(sizes: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the logits: ``log(size)`` of each key and the ``bias`` of each pair; None where neither is."""
    if sizes is None:
        return None if bias is None else bias.to(dtype)
    of_keys = sizes.log()[:, None, None, :]
    return (of_keys if bias is None else of_keys + bias).to(dtype)


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Tensor | None,
    dropout: float,
    bias: Tensor | None = None,
) -> Tensor:
    """The reference: PyTorch's own attention, with sizes and bias as an additive mask."""
    mask = logit_bias(sizes, bias, q.dtype)
    return (
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        .transpose(1, 2)
        .flatten(2)
    )


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Tensor | None,
    dropout: float,
    bias: Tensor | None = None,
) -> Tensor:
    """Two products and a softmax. In bfloat16 on a CPU this is faster than the fused kernel."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    mask = logit_bias(sizes, bias, q.dtype)
    if mask is not None:
        logits += mask
    weights = logits.softmax(dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return (weights @ v).transpose(1, 2).flatten(2)
