"""What tokens are compared by: the mean of their keys over the heads, or whatever else a block knows of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tome_core.merge import accumulation_dtype


@dataclass(frozen=True)
class Features:
    """What a block knows of its tokens when it merges them, for all tokens of a batch.

    Attributes:
        before: ``(T, D)``, the tokens that entered the block.
        after: ``(T, D)``, the same after attention: those that are merged.
        q, k, v: ``(T, H, d)``, as attention read them.
    """

    before: Tensor
    after: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


class Metric(Protocol):
    """A way to describe tokens to the `Matcher`, each by itself, so that it runs once over all tokens of a batch."""

    def __call__(self, features: Features) -> Tensor:
        """``(T, ...)``, without gradients, in the accumulation dtype of ``features.after``."""
        ...


def mean_key(features: Features) -> Tensor:
    """The paper's: keys, averaged over the heads (section 3, "Token similarity"), ``(T, d)``."""
    return features.k.detach().mean(dim=1, dtype=accumulation_dtype(features.after.dtype))
