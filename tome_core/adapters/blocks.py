"""Blocks of timm that attend, then have an MLP: in one branch each, or in several side by side."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from tome_core.adapters.attentions import SelfAttention
from tome_core.adapters.checks import (
    TOKENWISE_MLPS,
    TOKENWISE_NORMS,
    linear_macs,
    require_block,
    require_known,
    require_type,
)
from tome_core.cost import BlockCost
from tome_core.errors import UnsupportedModelError

BRANCHES = {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"}


class NormFirst:
    """A block whose branches begin with a norm and may end in LayerScale (see `tome_core.block.Block`)."""

    parts: Collection[str] = BRANCHES | {"ls1", "ls2"}
    attributes: Collection[str] = ()

    def __init__(self, block: Any, attention: SelfAttention, where: str) -> None:
        require_known(block, self.parts, self.attributes, where)
        require_block(block, where)
        self.block: Any = block
        self.attn: Any = block.attn
        self.attention = attention
        self.drop_path1 = block.drop_path1
        self.drop_path2 = block.drop_path2
        self.cost = BlockCost(
            attention.linear, linear_macs(block.mlp), attention.pair, attention.match
        )

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        return self.attention.dropout

    def attention_input(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.block.norm1(x)

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> three of ``(T, H, d)``."""
        return self.attention.qkv(h)

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        return self.block.ls1(self.attention.output(attended, h))

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.block.ls2(self.block.mlp(self.block.norm2(x)))


class NormLast(NormFirst):
    """A block whose branches end in a norm, as Swin v2's do."""

    parts = BRANCHES
    attributes = ("init_values",)

    def attention_input(self, x: Tensor) -> Tensor:
        """``(T, D)``, as they are."""
        return x

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        return self.block.norm1(self.attention.output(attended, h))

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.block.norm2(self.block.mlp(x))


class SideBySide:
    """timm's ``ParallelThingsBlock``: several attentions, then several MLPs (arXiv 2203.09795, section 3).

    The heads of all attentions are heads of one: tokens are compared by the mean of all their keys.
    """

    def __init__(self, block: Any, where: str) -> None:
        require_known(block, {"attns", "ffns"}, {"num_parallel"}, where)
        for kind, part in (("attns", "attn"), ("ffns", "mlp")):
            for index, branch in enumerate(getattr(block, kind)):
                _require_branch(branch, part, f"{where}.{kind}.{index}")
        self.block: Any = block
        self.attentions = [
            SelfAttention(branch.attn, f"{where}.attns.{index}.attn")
            for index, branch in enumerate(block.attns)
        ]
        if len({(attention.head_dim, attention.dropout) for attention in self.attentions}) > 1:
            raise UnsupportedModelError(
                f"the attentions of {where} differ in their heads or dropout"
            )
        self.drop_path1: nn.Module = nn.Identity()
        self.drop_path2: nn.Module = nn.Identity()
        self.cost = BlockCost(
            attention=sum(attention.linear for attention in self.attentions),
            mlp=sum(linear_macs(branch) for branch in block.ffns),
            pair=sum(attention.pair for attention in self.attentions),
            match=self.attentions[0].match,
        )

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        return self.attentions[0].dropout

    def attention_input(self, x: Tensor) -> Tensor:
        """``(T, D)``, as they are: each attention has a norm of its own."""
        return x

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> three of ``(T, H, d)`` with the heads of all attentions."""
        each = [
            attention.qkv(branch.norm(h))
            for attention, branch in zip(self.attentions, self.block.attns, strict=True)
        ]
        q, k, v = (torch.cat(parts, dim=1) for parts in zip(*each, strict=True))
        return q, k, v

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``, the sum of what the attentions give."""
        widths = [attention.attn.num_heads * attention.head_dim for attention in self.attentions]
        branches = zip(
            self.attentions, self.block.attns, attended.split(widths, dim=-1), strict=True
        )
        return torch.stack(
            [b.ls(attention.output(out, b.norm(h))) for attention, b, out in branches]
        ).sum(dim=0)

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``, the sum of what the MLPs give."""
        return torch.stack([branch(x) for branch in self.block.ffns]).sum(dim=0)


def _require_branch(branch: Any, part: str, where: str) -> None:
    """Raise `UnsupportedModelError` unless ``branch`` is a norm, attention or MLP, and LayerScale."""
    require_type(branch, (nn.Sequential,), where)
    require_known(branch, ("norm", part, "ls", "drop_path"), (), where)
    require_type(branch.norm, TOKENWISE_NORMS, f"{where}.norm")
    require_type(branch.ls, (nn.Identity, LayerScale), f"{where}.ls")
    if part == "mlp":
        require_type(branch.mlp, TOKENWISE_MLPS, f"{where}.mlp")
    if type(branch.drop_path) is DropPath:
        raise UnsupportedModelError(
            f"{where} has stochastic depth of its own; create the model with drop_path_rate=0"
        )
    require_type(branch.drop_path, (nn.Identity,), f"{where}.drop_path")
