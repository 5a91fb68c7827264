"""Which kernels match by which rule."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from tome_core.backends.cuda.extents import Extents
from tome_core.backends.cuda.matching import PackedMatching
from tome_core.rules import RuleName


class Matchers(Protocol):
    """The kernels that match, as launchers or as operators."""

    @property
    def match(self) -> Any:
        """`tome_core.backends.cuda.matching.match`, for the paper's rule."""

    @property
    def match_pairs(self) -> Any:
        """`tome_core.backends.cuda.pairs.match_pairs`, for all others."""


def match_by_rule(
    kernels: Matchers,
    rule: RuleName,
    keys: Tensor,
    extents: Extents,
    index: int,
    prefix: int,
) -> PackedMatching:
    """Match the tokens of each image in block ``index``.

    Args:
        keys: ``(T, H, d)``, heads adjacent in memory.
    """
    before = extents.starts[index]
    after = extents.starts[index + 1]
    after_total = extents.lengths[index + 1]
    matched: PackedMatching
    if rule == "paper":
        # Tiles are chosen, and compiled, once for all blocks: by the longest image of the first.
        matched = kernels.match(keys, before, after, extents.longest[0], after_total, prefix)
    else:
        by_distance = rule == "nearest"
        longest = extents.longest[index]
        matched = kernels.match_pairs(
            keys, before, after, longest, after_total, prefix, by_distance
        )
    return matched
