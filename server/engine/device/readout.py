"""What most callers want of a batch, in one small tensor, so that a single copy brings it from the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core import Outputs

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}


@dataclass(frozen=True)
class Readout:
    """A batch as the network left it, and the best of it.

    Attributes:
        outputs: of the network.
        best: float32 ``(B, 2 * top + 1)``: the scores of the ``top`` best classes, best first; the
            numbers of these classes, which float32 holds exactly up to 2**24; and 1 where all of
            the image's outputs are finite, else 0.
        top: how many classes `best` has.
    """

    outputs: Outputs
    best: Tensor
    top: int

    def first(self, images: int) -> Readout:
        """Of the first ``images`` of the batch: views."""
        outputs = self.outputs
        source = None if outputs.source is None else outputs.source[:images]
        shorter = Outputs(outputs.logits[:images], outputs.features[:images], source)
        return Readout(shorter, self.best[:images], self.top)


def read_out(outputs: Outputs, activation: str, top: int) -> Readout:
    """The ``top`` best classes of each image, or all of them where there are fewer, by ``activation`` of its logits."""
    logits = outputs.logits.float()
    top = min(top, logits.shape[-1])
    scores, classes = ACTIVATIONS[activation](logits).topk(top, dim=-1)
    finite = logits.isfinite().all(dim=-1, keepdim=True) & outputs.features.isfinite().all(
        dim=-1, keepdim=True
    )
    return Readout(outputs, torch.cat([scores, classes.float(), finite.float()], dim=-1), top)
