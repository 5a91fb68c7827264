"""Proportional attention by kernels that take no bias: ``log(size)`` travels as two more channels of queries and keys.

Flash attention refuses an additive mask. But a channel that is 1 in every query and ``log(size) * sqrt(d)`` in a key
adds just that to their product, scaled by ``1 / sqrt(d)``: the bias of equation 1 of the paper. One channel of a 16-bit
type would round it by up to 0.4%, so there are two, its high and its low part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.attention import fused_attention

ALIGNMENT = 8  # flash attention takes head widths that are multiples of it
WIDEST = 256  # and no wider ones
HALF = (torch.bfloat16, torch.float16)


def width_of(q: Tensor, v: Tensor, biased: bool) -> int:
    """Channels of a head with room for a bias, as wide as the values at least, since kernels want equal widths."""
    return -(-max(q.shape[-1] + 2 * biased, v.shape[-1]) // ALIGNMENT) * ALIGNMENT


def widen(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one width, whose attention with the scale ``d ** -0.5`` has ``bias`` in its logits.

    Args:
        q, k: ``(..., d)``.
        v: ``(..., e)``; zeros are put behind it, so the first ``e`` channels of the result are what was asked for.
        bias: of each key, in at least float32, ``(..., 1)`` with dimensions that fit those of ``k``; None for none.
    """
    depth, width = q.shape[-1], width_of(q, v, bias is not None)
    v = _pad(v, width)
    if bias is None:
        return _pad(q, width), _pad(k, width), v
    of_keys = bias * depth**0.5
    high = of_keys.to(k.dtype)
    low = (of_keys - high).to(k.dtype)
    ones = q.new_ones(1).expand(*q.shape[:-1], width - depth)
    rest = k.new_zeros(1).expand(*k.shape[:-1], width - depth - 2)
    lead = k.shape[:-1]
    keys = torch.cat([k, high.expand(*lead, 1), low.expand(*lead, 1), rest], dim=-1)
    return torch.cat([q, ones], dim=-1), keys, v


def widened_attention(
    q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, dropout: float, bias: Tensor | None = None
) -> Tensor:
    """An `Attend` that needs no mask, unless relative positions give one, or heads are too wide for it."""
    if sizes is None or bias is not None or width_of(q, v, True) > WIDEST:
        return fused_attention(q, k, v, sizes, dropout, bias)
    wide = widen(q, k, v, sizes.log()[:, None, :, None])
    out = F.scaled_dot_product_attention(*wide, dropout_p=dropout, scale=q.shape[-1] ** -0.5)
    return out[..., : v.shape[-1]].transpose(1, 2).flatten(2)


def _pad(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))
