"""A model that keeps its r between calls, for code that sets ``model.r`` and calls ``model(x)``.

model = KeepsR(timm.create_model("vit_base_patch16_224", pretrained=True))
model.r = 16
logits = model(images)
"""

from __future__ import annotations

from torch import Tensor, nn

import tome_core
from tome_core import Schedule


class KeepsR(nn.Module):
    """A merging model with the attribute ``r`` of the published package.

    Attributes:
        r: a number; a pair of a number and an inflection; or a list, one number for each block.
    """

    def __init__(self, vit: nn.Module, *, prop_attn: bool = True) -> None:
        super().__init__()
        self.merged = tome_core.patch(vit, prop_attn=prop_attn)
        self.r: int | tuple[int, float] | list[int] = 0

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of ``images (B, C, H, W)``."""
        logits: Tensor = self.merged(images, r=self._schedule())
        return logits

    def _schedule(self) -> Schedule:
        if isinstance(self.r, tuple):
            return Schedule.linear(*self.r)
        if isinstance(self.r, list):
            return Schedule.per_layer(self.r)
        return Schedule.constant(self.r)
