"""How merging is executed: it changes the speed of a model, and its results by rounding alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tome_core.metric import BlockTensors
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed


class Strategy(Protocol):
    """The parts of a block that separate images: attention and merging in a packed buffer."""

    def attend(
        self,
        context: BlockContext,
        qkv: tuple[Tensor, Tensor, Tensor],
        dropout: float,
    ) -> Tensor:
        """Compute attention within each image.

        Args:
            context: the block, and the tokens that enter it.
            qkv: queries, keys and values, each ``(T, H, d)``.
            dropout: probability of dropping an attention weight.

        Returns:
            ``(T, H * d)``.
        """
        ...

    def merge(self, context: BlockContext, features: BlockTensors) -> Packed:
        """Merge the tokens of every image as its schedule requests.

        Args:
            context: the block, and its tokens after attention.
            features: what describes these tokens to a metric.
        """
        ...


@dataclass(frozen=True)
class Execution:
    """How a model executes its blocks: chosen for a device when it is optimised.

    Where the model has an encoder that supports a call, this runs instead of the strategy. To give
    an optimised model another execution, set its ``encoder`` to None too.

    Attributes:
        strategy: attends and merges in a packed buffer.
        in_place: add tokens to the output of a branch in place. Must be False if hooks may have
            stored that output, or if gradients need it.
        prune: if the head reads only prefix tokens, compute only these in the last block after
            attention. Layers that round differently for fewer rows then give other last bits.
    """

    strategy: Strategy
    in_place: bool = False
    prune: bool = False
