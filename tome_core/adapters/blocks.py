"""Adapters of timm's blocks: one attention branch and one MLP branch, or several in parallel."""

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


class PreNormBlock:
    """A block whose branches start with a norm and may end in LayerScale.

    See `tome_core.block.Block`. Class attributes list what the module may consist of; see
    `require_known`.
    """

    children: Collection[str] = BRANCHES | {"ls1", "ls2"}
    attributes: Collection[str] = ()

    def __init__(
        self,
        block: Any,
        attention: SelfAttention,
        where: str,
    ) -> None:
        require_known(block, self.children, self.attributes, where)
        require_block(block, where)
        self.block: Any = block
        self.attn: Any = block.attn
        self.attention = attention
        self.drop_path1 = block.drop_path1
        self.drop_path2 = block.drop_path2
        self.cost = BlockCost(
            attention=attention.linear,
            mlp=linear_macs(block.mlp),
            pair=attention.pair,
            match=attention.match,
            heads=attention.heads,
        )

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        return self.attention.dropout

    def attention_input(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        return self.block.norm1(x)

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> queries, keys and values, ``(T, H, d)`` each."""
        return self.attention.qkv(h)

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        out = self.attention.output(attended, h)
        return self.block.ls1(out)

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        normed = self.block.norm2(x)
        out = self.block.mlp(normed)
        return self.block.ls2(out)


class PostNormBlock(PreNormBlock):
    """A block whose branches end in a norm, as those of Swin v2."""

    children = BRANCHES
    attributes = ("init_values",)

    def attention_input(self, x: Tensor) -> Tensor:
        """Return ``x (T, D)`` as it is."""
        return x

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``."""
        out = self.attention.output(attended, h)
        return self.block.norm1(out)

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``."""
        out = self.block.mlp(x)
        return self.block.norm2(out)


class ParallelBlock:
    """timm's ``ParallelThingsBlock``: parallel attentions, then parallel MLPs.

    See arXiv 2203.09795, section 3. The heads of all attentions count as heads of one attention, so
    tokens are compared by the mean of all keys.
    """

    def __init__(self, block: Any, where: str) -> None:
        require_known(block, {"attns", "ffns"}, {"num_parallel"}, where)
        for index, branch in enumerate(block.attns):
            _require_branch(branch, "attn", f"{where}.attns.{index}")
        for index, branch in enumerate(block.ffns):
            _require_branch(branch, "mlp", f"{where}.ffns.{index}")
        self.block: Any = block
        self.attentions = []
        for index, branch in enumerate(block.attns):
            attention = SelfAttention(branch.attn, f"{where}.attns.{index}.attn")
            self.attentions.append(attention)
        self._require_equal_attentions(where)
        self.drop_path1: nn.Module = nn.Identity()
        self.drop_path2: nn.Module = nn.Identity()
        self.cost = BlockCost(
            attention=sum(attention.linear for attention in self.attentions),
            mlp=sum(linear_macs(branch) for branch in block.ffns),
            pair=sum(attention.pair for attention in self.attentions),
            match=self.attentions[0].match,
            heads=sum(attention.heads for attention in self.attentions),
        )

    def _require_equal_attentions(self, where: str) -> None:
        variants = {(attention.head_dim, attention.dropout) for attention in self.attentions}
        if len(variants) > 1:
            raise UnsupportedModelError(
                f"the attentions of {where} differ in their heads or dropout"
            )

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        return self.attentions[0].dropout

    def attention_input(self, x: Tensor) -> Tensor:
        """Return ``x (T, D)`` as it is, since each attention has a norm of its own."""
        return x

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, D)`` -> queries, keys and values of all attentions, ``(T, H, d)`` each."""
        queries = []
        keys = []
        values = []
        for attention, branch in zip(self.attentions, self.block.attns, strict=True):
            q, k, v = attention.qkv(branch.norm(h))
            queries.append(q)
            keys.append(k)
            values.append(v)
        return torch.cat(queries, dim=1), torch.cat(keys, dim=1), torch.cat(values, dim=1)

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """``(T, H * d)`` -> ``(T, D)``, the sum of the outputs of all attentions."""
        widths = [attention.attn.num_heads * attention.head_dim for attention in self.attentions]
        outputs = []
        for attention, branch, of_attention in zip(
            self.attentions,
            self.block.attns,
            attended.split(widths, dim=-1),
            strict=True,
        ):
            out = attention.output(of_attention, branch.norm(h))
            outputs.append(branch.ls(out))
        return torch.stack(outputs).sum(dim=0)

    def mlp(self, x: Tensor) -> Tensor:
        """``(T, D)`` -> ``(T, D)``, the sum of the outputs of all MLPs."""
        outputs = [branch(x) for branch in self.block.ffns]
        return torch.stack(outputs).sum(dim=0)


def _require_branch(
    branch: Any,
    name: str,
    where: str,
) -> None:
    """Raise `UnsupportedModelError` unless ``branch`` has the parts of a parallel branch.

    Args:
        branch: a norm, an attention or an MLP, and LayerScale.
        name: attribute of the attention or the MLP.
        where: path of ``branch`` in the model.
    """
    require_type(branch, (nn.Sequential,), where)
    require_known(branch, ("norm", name, "ls", "drop_path"), (), where)
    require_type(branch.norm, TOKENWISE_NORMS, f"{where}.norm")
    require_type(branch.ls, (nn.Identity, LayerScale), f"{where}.ls")
    if name == "mlp":
        require_type(branch.mlp, TOKENWISE_MLPS, f"{where}.mlp")
    if type(branch.drop_path) is DropPath:
        raise UnsupportedModelError(
            f"{where} has stochastic depth of its own; create the model with drop_path_rate=0"
        )
    require_type(branch.drop_path, (nn.Identity,), f"{where}.drop_path")
