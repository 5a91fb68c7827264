"""Adapters of timm's attention modules: what runs before and after attention itself."""

from __future__ import annotations

from typing import Any, ClassVar

from timm.layers import Attention, DiffAttention
from torch import Tensor

from tome_core.adapters.checks import linear_macs, require_attention, require_known, require_type


class SelfAttention:
    """timm's ``Attention``, with norms of queries and keys, a norm of the output, and a gate.

    Class attributes list what the module may consist of; see `require_known`.

    Attributes:
        linear, pair, match, heads: its part of a `BlockCost`.
    """

    module_type: ClassVar[type] = Attention
    children: ClassVar[set[str]] = {
        "qkv",
        "q_norm",
        "k_norm",
        "attn_drop",
        "norm",
        "proj",
        "proj_drop",
    }
    optional_children: ClassVar[set[str]] = {"gate"}
    attributes: ClassVar[set[str]] = {"num_heads", "head_dim", "attn_dim", "scale", "fused_attn"}

    def __init__(self, attn: Any, where: str) -> None:
        require_type(attn, (self.module_type,), where)
        present = self.optional_children & set(attn._modules)
        absent = self.optional_children - present
        require_known(attn, self.children | present, self.attributes | absent, where)
        self.attn: Any = attn
        require_attention(attn, self.head_dim, where)
        self.linear = linear_macs(attn)
        self.match = self.head_dim
        self.heads = attn.num_heads
        self.pair = 2 * attn.num_heads * self.head_dim

    @property
    def head_dim(self) -> int:
        """Width of the queries and keys of one head."""
        return int(self.attn.head_dim)

    @property
    def dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        attn_drop = self.attn.attn_drop
        return attn_drop.p if attn_drop.training else 0.0

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> queries, keys and values, ``(T, H, d)`` each."""
        attn = self.attn
        projected = attn.qkv(h)  # (T, 3 * H * d)
        by_head = projected.unflatten(-1, (3, attn.num_heads, self.head_dim))  # (T, 3, H, d)
        q, k, v = by_head.unbind(1)
        return attn.q_norm(q), attn.k_norm(k), v

    def output(self, attended: Tensor, h: Tensor) -> Tensor:
        """Project the attended values.

        Args:
            attended: ``(T, H * d)``.
            h: the tokens ``(T, D)`` that `qkv` read.

        Returns:
            ``(T, D)``.
        """
        attn = self.attn
        out = attn.norm(attended)
        if attn.gate is not None:
            gate = attn.gate(h)
            out = out * gate.sigmoid()
        out = attn.proj(out)
        return attn.proj_drop(out)


class DifferentialAttention(SelfAttention):
    """timm's ``DiffAttention``, in which a head is the difference of two attention maps.

    Each map counts a key of size s as s keys, so their difference does, too. Tokens are compared by
    the keys of both maps. The maps of a head share its values, which are twice as wide as its keys.
    """

    module_type = DiffAttention
    children = SelfAttention.children | {"sub_norm"}
    optional_children: ClassVar[set[str]] = set()
    attributes: ClassVar[set[str]] = {
        "attn_drop_p",
        "dual_lambda",
        "fused_attn",
        "head_dim",
        "lambda_a",
        "lambda_b",
        "lambda_init",
        "lambda_k1",
        "lambda_k2",
        "lambda_q1",
        "lambda_q2",
        "num_heads",
        "scale",
    }

    def __init__(self, attn: Any, where: str) -> None:
        super().__init__(attn, where)
        keys_width = self.head_dim
        maps = 2 * attn.num_heads
        self.heads = maps
        self.pair = maps * (keys_width + self._values_width)

    @property
    def _values_width(self) -> int:
        return 2 * self.head_dim

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> queries and keys ``(T, 2 * H, d)`` and values ``(T, 2 * H, 2 * d)``."""
        attn = self.attn
        q, k, v = attn.qkv(h).chunk(3, dim=-1)  # (T, 2 * H * d) each
        q = q.unflatten(-1, (-1, self.head_dim))  # (T, 2 * H, d)
        k = k.unflatten(-1, (-1, self.head_dim))  # (T, 2 * H, d)
        v = v.unflatten(-1, (-1, self._values_width))  # (T, H, 2 * d)
        q = attn.q_norm(q)
        k = attn.k_norm(k)
        return q, k, v.repeat_interleave(2, dim=1)

    def output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, 2 * H * 2 * d)`` -> ``(T, D)``."""
        attn = self.attn
        maps = attended.unflatten(-1, (-1, 2, self._values_width))  # (T, H, 2, 2 * d)
        first, second = maps.unbind(-2)  # (T, H, 2 * d) each
        weight = attn._compute_lambda().type_as(first)
        difference = first - weight * second
        out = attn.sub_norm(difference) * (1 - attn.lambda_init)
        out = attn.norm(out.flatten(-2))  # (T, H * 2 * d)
        out = attn.proj(out)
        return attn.proj_drop(out)
