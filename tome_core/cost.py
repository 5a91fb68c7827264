"""What a schedule costs, in exact multiply-accumulates (MACs). Pure Python, like `tome_core.schedule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class BlockCost:
    """MACs of one block: of its linear layers for each token, and of attention for each pair of tokens.

    Attributes:
        attention: linear MACs per token that enters the block (qkv, proj, gate).
        mlp: linear MACs per token that is left after merging.
        pair: MACs per pair of tokens: products of queries and keys, and of weights and values.
        match: MACs per pair of a source and a destination compared in matching (the metric's
            width).
    """

    attention: int
    mlp: int
    pair: int
    match: int


@dataclass(frozen=True)
class Cost:
    """MACs of one image through a model.

    Matching is counted as `tome_core.Bipartite` does it, which leaves out the ``prefix`` tokens.

    Attributes:
        fixed: of patch embedding, head, and whatever else does not depend on merging.
        pool: for each token that an attention pool reads, beyond the prefix tokens.
    """

    fixed: int
    blocks: tuple[BlockCost, ...]
    prefix: int = 0
    pool: int = 0

    def macs(self, tokens: Sequence[int]) -> int:
        """Total for one image with ``tokens`` at the input and after each block (`Schedule.tokens`)."""
        total = self.linear(tokens)
        for block, (before, after) in zip(self.blocks, pairwise(tokens), strict=True):
            total += before * before * block.pair
            if after < before:
                mergeable = before - self.prefix
                total += (mergeable // 2) * (mergeable - mergeable // 2) * block.match
        return total

    def linear(self, tokens: Sequence[int]) -> int:
        """The part of `macs` that grows with the number of tokens, and what is fixed: all but pairs of tokens."""
        total = self.fixed + (tokens[-1] - self.prefix) * self.pool
        for block, (before, after) in zip(self.blocks, pairwise(tokens), strict=True):
            total += before * block.attention + after * block.mlp
        return total

    def relative(self, tokens: Sequence[int]) -> float:
        """`macs` as a share of what the same image costs without merging."""
        return self.macs(tokens) / self.macs([tokens[0]] * len(tokens))
