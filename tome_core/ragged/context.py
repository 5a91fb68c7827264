"""What attention and merging of one block read beside the tensors that the block computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tome_core.merge import accumulation_dtype
from tome_core.merging import Merging
from tome_core.positional import Positional
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import Group, Plan, join


@dataclass(frozen=True)
class BlockContext:
    """A batch before one block, or after the last.

    Attributes:
        merging: how the model merges.
        plan: the groups of the batch.
        index: index of the block; their number after the last.
        packed: the tokens that enter the block; for merging, these tokens after attention.
        positional: positions that attention reads, if any.
    """

    merging: Merging
    plan: Plan
    index: int
    packed: Packed
    positional: Positional | None = None

    @property
    def merges(self) -> bool:
        """Whether any image loses tokens in the block."""
        return self.plan.merges(self.index)

    @property
    def has_bias(self) -> bool:
        """Whether positions add to the logits of attention."""
        return self.positional is not None and self.positional.has_bias

    def views(self, buffer: Tensor) -> Iterator[tuple[Group, Tensor]]:
        """Yield each group with its part of ``buffer (T, ...)`` before the block merges."""
        return self.plan.views(buffer, self.index)

    def sizes(self) -> Tensor | None:
        """Return the sizes of all tokens before the block merges, ``(T,)``; None if all are 1."""
        tokens = self.packed.tokens
        if all(sizes is None for sizes in self.packed.sizes):
            return None
        dtype = accumulation_dtype(tokens.dtype)
        flat = []
        for group, sizes in zip(self.plan.groups, self.packed.sizes, strict=True):
            if sizes is None:
                total = group.images * group.tokens[self.index]
                flat.append(torch.ones(total, dtype=dtype, device=tokens.device))
            else:
                flat.append(sizes.flatten())
        return join(flat)

    def key_sizes(self) -> Tensor | None:
        """Return how often attention counts each key, ``(T,)``; None if all count once."""
        return self.sizes() if self.merging.prop_attn else None

    def positions(self) -> Tensor | None:
        """Return the input positions of all tokens, ``(T,)``; None if attention reads none."""
        if self.packed.positions is None:
            return None
        return join([positions.flatten() for positions in self.packed.positions])

    def with_tokens(self, tokens: Tensor) -> BlockContext:
        """Return the context of the same block with other ``tokens (T, D)``."""
        return replace(self, packed=replace(self.packed, tokens=tokens))

    def following(self, packed: Packed) -> BlockContext:
        """Return the context of the next block, which ``packed`` enters."""
        return replace(self, index=self.index + 1, packed=packed)
