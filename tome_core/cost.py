"""The MAC count of a schedule: exact multiply-accumulates of one image. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tome_core.split import set_sizes


@dataclass(frozen=True)
class BlockCost:
    """MACs of one block: of linear layers per token, and of attention per pair of tokens.

    Attributes:
        attention: linear MACs per token that enters the block (qkv, proj, gate).
        mlp: linear MACs per token that is left after merging.
        pair: MACs per pair of tokens: products of queries and keys, and of weights and values.
        match: MACs per pair of tokens that are compared by their mean keys: the width of a key.
        heads: number of keys of a token; some rules compare all of them.
    """

    attention: int
    mlp: int
    pair: int
    match: int
    heads: int = 1


@dataclass(frozen=True)
class Cost:
    """MACs of one image through a model.

    Attributes:
        fixed: MACs of the patch embedding, the head and all else that merging does not change.
        blocks: MACs of each block.
        prefix: number of prefix tokens, which are not compared in matching.
        pool: MACs per token that an attention pool reads, without the prefix tokens.
        pool_blocks: MACs of each block of the pool, which attends to these tokens and merges none.
        all_pairs: whether matching compares all tokens that are no prefix tokens with each other,
            as `tome_core.Pairs` does; else those of A with those of B, as `tome_core.Bipartite`.
        all_heads: whether it compares the keys of all heads; else their mean.
    """

    fixed: int
    blocks: tuple[BlockCost, ...]
    prefix: int = 0
    pool: int = 0
    pool_blocks: tuple[BlockCost, ...] = ()
    all_pairs: bool = False
    all_heads: bool = False

    def macs(self, tokens: Sequence[int]) -> int:
        """Return the total for one image.

        Args:
            tokens: token counts at the input and after each block (`Schedule.tokens`).
        """
        total = self.linear(tokens)
        for block, (before, after) in zip(self.blocks, pairwise(tokens), strict=True):
            total += before * before * block.pair
            if after < before:
                total += self._matching(block, before)
        pooled_tokens = tokens[-1] - self.prefix
        for block in self.pool_blocks:
            total += pooled_tokens * pooled_tokens * block.pair
        return total

    def _matching(self, block: BlockCost, tokens: int) -> int:
        width = block.match * (block.heads if self.all_heads else 1)
        if self.all_pairs:
            mergeable = tokens - self.prefix
            return mergeable * mergeable * width
        tokens_of_a, tokens_of_b = set_sizes(tokens, self.prefix)
        return tokens_of_a * tokens_of_b * width

    def linear(self, tokens: Sequence[int]) -> int:
        """Return the part of `macs` that is fixed or grows linearly with the number of tokens."""
        pooled_tokens = tokens[-1] - self.prefix
        total = self.fixed + pooled_tokens * self.pool
        for block in self.pool_blocks:
            total += pooled_tokens * (block.attention + block.mlp)
        for block, (before, after) in zip(self.blocks, pairwise(tokens), strict=True):
            total += before * block.attention
            total += after * block.mlp
        return total

    def attended(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the number of tokens that enter each block, then each block of the pool."""
        pooled_tokens = tokens[-1] - self.prefix
        return (*tokens[:-1], *[pooled_tokens] * len(self.pool_blocks))

    def relative(self, tokens: Sequence[int]) -> float:
        """Return `macs` as a fraction of the MACs of the same image without merging."""
        unmerged = [tokens[0]] * len(tokens)
        return self.macs(tokens) / self.macs(unmerged)
