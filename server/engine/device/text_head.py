"""Zero-shot classification on the device: embeddings of images against the vectors of labels.

The vectors come from a text tower that ran once, before (`tome-serve text`), so that a batch pays
for one small product of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from server.engine.device.readout import Readout, read_out
from tome_core import Outputs


@dataclass(frozen=True)
class TextHead:
    """One label set on the device.

    Attributes:
        vectors: float32 ``(labels, D)`` of unit length, times the scale of the logits.
        bias: added to the logits.
    """

    vectors: Tensor
    bias: float

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logits ``(B, labels)`` of ``embeddings (B, D)``: scaled cosines plus bias."""
        unit = functional.normalize(embeddings.float(), dim=-1)
        logits = unit @ self.vectors.t()
        return logits + self.bias if self.bias else logits


class TextHeads:
    """The label sets of a model on its device.

    Args:
        heads: by name, the default first.
        activation: computes the scores; see `server.engine.device.readout`.
    """

    def __init__(self, heads: Mapping[str, TextHead], activation: str) -> None:
        self._heads = heads
        self._default = next(iter(heads))
        self._activation = activation

    def compare(self, outputs: Outputs) -> Outputs:
        """Return the logits of the default label set, with the embedding as the features.

        Args:
            outputs: of the network, whose logits are the embedding.
        """
        embeddings = outputs.logits
        return Outputs(self._heads[self._default].logits(embeddings), embeddings, outputs.source)

    def read_out_each(self, outputs: Outputs, names: Sequence[str], top: int) -> Readout:
        """Read out the ``top`` best labels of each image, by its own label set.

        Images of a smaller label set have zeros behind its last label.

        Args:
            outputs: as `compare` returns them; their logits stay those of the default label set.
            names: of the label set of each image; empty for the default.
        """
        embeddings = outputs.features
        top = min(top, max(len(self._head(name).vectors) for name in names))
        best = embeddings.new_zeros(len(names), 2 * top + 1, dtype=torch.float32)
        for name in dict.fromkeys(names):
            rows = [row for row, own in enumerate(names) if own == name]
            chosen = torch.tensor(rows, device=embeddings.device)
            of_set = embeddings[chosen]
            logits = self._head(name).logits(of_set)
            found = read_out(Outputs(logits, of_set, None), self._activation, top)
            best[chosen] = _widen(found, top)
        return Readout(outputs, best, top)

    def _head(self, name: str) -> TextHead:
        return self._heads[name or self._default]


def _widen(readout: Readout, top: int) -> Tensor:
    """Return the rows of ``readout.best`` with zeros where ``top`` is more than it has."""
    count = readout.top
    scores, classes, finite = readout.best.split([count, count, 1], dim=-1)
    missing = (0, top - count)
    return torch.cat(
        [functional.pad(scores, missing), functional.pad(classes, missing), finite], dim=-1
    )
