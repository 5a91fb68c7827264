"""Several results of one forward pass, for callers that need more than logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """The result of `MergedViT.outputs`.

    Attributes:
        logits: ``(B, classes)``, as `MergedViT.forward` returns them; the features if there are no
            classes.
        features: ``(B, D)``, as `MergedViT.embed` returns them.
        source: int64 ``(B, N0)``, as in a `Trace`; None if the call did not request it.
    """

    logits: Tensor
    features: Tensor
    source: Tensor | None
