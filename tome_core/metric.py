"""What tokens are compared by: the mean of their keys over the heads, all keys, or others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tome_core.merge import accumulation_dtype


@dataclass(frozen=True)
class BlockTensors:
    """What a block has computed of all tokens of a batch when it merges them.

    Attributes:
        before: ``(T, D)``, the tokens that entered the block.
        after: ``(T, D)``, the tokens after attention, which are those to merge.
        q, k, v: ``(T, H, d)``, as attention read them.
        sizes: returns the patches in each token, ``(T,)``; None if all are 1. A function, since it
            costs time that few metrics need.
    """

    before: Tensor
    after: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    sizes: Callable[[], Tensor | None] = lambda: None


class Metric(Protocol):
    """A way to describe tokens to the `Matcher`.

    It describes each token by itself, so that it runs once over all tokens of a batch.
    """

    def __call__(self, features: BlockTensors) -> Tensor:
        """Return ``(T, ...)``, without gradients, in the accumulation dtype of the tokens."""
        ...


def mean_key(features: BlockTensors) -> Tensor:
    """Return keys averaged over the heads, ``(T, d)`` (paper, section 3, "Token similarity")."""
    keys = features.k.detach()  # (T, H, d)
    dtype = accumulation_dtype(features.after.dtype)
    return keys.mean(dim=1, dtype=dtype)


def all_keys(features: BlockTensors) -> Tensor:
    """Return the keys of all heads one after the other, ``(T, H * d)``."""
    keys = features.k.detach()  # (T, H, d)
    dtype = accumulation_dtype(features.after.dtype)
    return keys.to(dtype).flatten(1)
