"""Readout of a batch: what most requests need, in one tensor and so in one copy to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core import Outputs


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def _identity(logits: Tensor) -> Tensor:
    return logits


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": _softmax,
    "sigmoid": torch.sigmoid,
    "none": _identity,
    "cosine": _identity,  # which the logits are then, see `text_head`
}


@dataclass(frozen=True)
class Readout:
    """The outputs of a batch, and its best classes.

    Attributes:
        outputs: of the network.
        best: float32 ``(B, 2 * top + 1)``. In each row: the scores of the ``top`` best classes,
            best first; the indices of these classes, which float32 represents exactly up to
            2**24; and 1 if all outputs of the image are finite, else 0.
        top: the number of classes in `best`.
    """

    outputs: Outputs
    best: Tensor
    top: int

    def first(self, images: int) -> Readout:
        """Return the readout of the first ``images``: views, not copies."""
        outputs = self.outputs
        source = outputs.source
        if source is not None:
            source = source[:images]
        return Readout(
            outputs=Outputs(outputs.logits[:images], outputs.features[:images], source),
            best=self.best[:images],
            top=self.top,
        )


def read_out(
    outputs: Outputs,
    activation: str,
    top: int,
) -> Readout:
    """Read out the ``top`` best classes of each image, or all classes if there are fewer.

    Args:
        activation: computes the scores from the logits; a key of `ACTIVATIONS`.
    """
    logits = outputs.logits.float()
    top = min(top, logits.shape[-1])
    scores = ACTIVATIONS[activation](logits)
    best_scores, best_classes = scores.topk(top, dim=-1)
    finite_logits = logits.isfinite().all(dim=-1, keepdim=True)
    finite_features = outputs.features.isfinite().all(dim=-1, keepdim=True)
    finite = finite_logits & finite_features
    best = torch.cat([best_scores, best_classes.float(), finite.float()], dim=-1)
    return Readout(outputs, best, top)
