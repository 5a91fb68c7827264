"""timm's attention modules, taken apart: what happens to tokens before and after they attend."""

from __future__ import annotations

from typing import Any, ClassVar

from timm.layers import Attention, DiffAttention
from torch import Tensor

from tome_core.adapters.checks import linear_macs, require_attention, require_known, require_type


class SelfAttention:
    """timm's ``Attention``, with norms of queries and keys, a norm of what was attended, and gates.

    Attributes:
        linear, pair, match: what it adds to a `BlockCost`.
    """

    kind: ClassVar[type] = Attention
    parts: ClassVar[set[str]] = {
        "qkv",
        "q_norm",
        "k_norm",
        "attn_drop",
        "norm",
        "proj",
        "proj_drop",
    }
    optional: ClassVar[set[str]] = {"gate"}
    attributes: ClassVar[set[str]] = {"num_heads", "head_dim", "attn_dim", "scale", "fused_attn"}

    def __init__(self, attn: Any, where: str) -> None:
        require_type(attn, (self.kind,), where)
        there = self.optional & set(attn._modules)
        require_known(attn, self.parts | there, self.attributes | self.optional - there, where)
        self.attn: Any = attn
        require_attention(attn, self.head_dim, where)
        self.linear = linear_macs(attn)
        self.match = self.head_dim
        self.pair = 2 * attn.num_heads * self.head_dim

    @property
    def head_dim(self) -> int:
        """Width of one head's queries and keys."""
        return int(self.attn.head_dim)

    @property
    def dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        return self.attn.attn_drop.p if self.attn.attn_drop.training else 0.0

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> three of ``(T, H, d)``."""
        q, k, v = self.attn.qkv(h).unflatten(-1, (3, self.attn.num_heads, self.head_dim)).unbind(1)
        return self.attn.q_norm(q), self.attn.k_norm(k), v

    def output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` and the tokens that `qkv` read -> ``(T, D)``."""
        out = self.attn.norm(attended)
        if self.attn.gate is not None:
            out = out * self.attn.gate(h).sigmoid()
        return self.attn.proj_drop(self.attn.proj(out))


class DifferentialAttention(SelfAttention):
    """timm's ``DiffAttention``: each head is the difference of two, which attend apart and share values twice as wide.

    Both count a key of size s as s keys, so their difference does; tokens are compared by the keys
    of both.
    """

    kind = DiffAttention
    parts = SelfAttention.parts | {"sub_norm"}
    optional: ClassVar[set[str]] = set()
    attributes: ClassVar[set[str]] = {
        "attn_drop_p", "dual_lambda", "fused_attn", "head_dim", "lambda_a", "lambda_b", "lambda_init", "lambda_k1",
        "lambda_k2", "lambda_q1", "lambda_q2", "num_heads", "scale",
    }  # fmt: skip

    def __init__(self, attn: Any, where: str) -> None:
        super().__init__(attn, where)
        self.pair = 2 * attn.num_heads * (self.head_dim + 2 * self.head_dim)

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> queries and keys ``(T, 2 * H, d)`` and values ``(T, 2 * H, 2 * d)``."""
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)) for part in self.attn.qkv(h).chunk(3, dim=-1)
        )
        return (
            self.attn.q_norm(q),
            self.attn.k_norm(k),
            v.flatten(-2).unflatten(-1, (-1, 2 * self.head_dim)).repeat_interleave(2, 1),
        )

    def output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, 2 * H * 2 * d)`` -> ``(T, D)``."""
        attn = self.attn
        first, second = attended.unflatten(-1, (-1, 2, 2 * self.head_dim)).unbind(-2)
        difference = first - attn._compute_lambda().type_as(first) * second
        out = (attn.sub_norm(difference) * (1 - attn.lambda_init)).flatten(-2)
        return attn.proj_drop(attn.proj(attn.norm(out)))
