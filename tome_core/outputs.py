"""Everything that one forward pass gives a server: for callers who want different things of one batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """The result of `MergedViT.outputs`.

    Attributes:
        logits: ``(B, classes)``, as a plain call gives them; the features where classes is 0.
        features: ``(B, D)``, as `MergedViT.embed` gives them.
        source: int64 ``(B, N0)``, as in a `Trace`; None where nobody asked.
    """

    logits: Tensor
    features: Tensor
    source: Tensor | None
