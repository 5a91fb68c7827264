"""What is measured: a model in one dtype at one batch size, and the values of r it runs at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCHES = (1, 8, 32)
# A batch of many schedules is measured where there are enough images for each.
MIXED = (0, 4, 8, 12, 16)
MIXED_BATCH = 32


@dataclass(frozen=True)
class Model:
    """A timm architecture, its side in pixels, and values of r that suit its token count."""

    timm: str
    pixels: int
    r: tuple[int, ...]


# At 384 pixels (577 tokens): the paper's 23 for its ViT-L, and 45 for its SWAG ViT-B.
MODELS = {
    "Ti": Model("vit_tiny_patch16_224", 224, (0, 8, 13, 16)),
    "S": Model("vit_small_patch16_224", 224, (0, 8, 13, 16)),
    "B": Model("vit_base_patch16_224", 224, (0, 8, 13, 16)),
    "B-384": Model("vit_base_patch16_384", 384, (0, 23, 45)),
}
QUICK = (("S", "bf16", 32), ("S", "bf16", 1), ("S", "fp32", 32))
QUICK_R = (0, 8, 16)


@dataclass(frozen=True)
class Case:
    """Everything in a case is measured in turns.

    Attributes:
        r: one batch for each, all of its images alike.
        mixed: where not empty, one more batch whose images take these values of r in turn.
    """

    model: Model
    dtype: str
    batch: int
    r: tuple[int, ...]
    mixed: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.model.timm} {self.dtype} batch {self.batch}"

    @property
    def mixed_r(self) -> list[int]:
        """The r of each image of the mixed batch."""
        return [self.mixed[image % len(self.mixed)] for image in range(self.batch)]


@dataclass(frozen=True)
class Setup:
    """Input of a contender's builder: ``vit`` is a float32 timm model on ``device``, read-only."""

    vit: nn.Module
    case: Case
    device: torch.device
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return DTYPES[self.case.dtype]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the images, ``(B, C, H, W)``."""
        return self.case.batch, 3, self.case.model.pixels, self.case.model.pixels


def choose(
    models: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    r: Sequence[int] | None = None,
    quick: bool = False,
) -> list[Case]:
    """The cases of a run, in order; None does not restrict, ``quick`` keeps those of `QUICK`.

    A given ``r`` replaces the model's own, and leaves the mixed batch out.

    Raises:
        ValueError: nothing is left.
    """
    wanted = list(product(models or MODELS, dtypes or ("fp32", "bf16"), batches or BATCHES))
    if quick:
        wanted = [key for key in QUICK if key in wanted]
    if not wanted:
        raise ValueError(
            "no case is left; --quick measures"
            f" {', '.join(' '.join(map(str, key)) for key in QUICK)}"
        )
    return [_case(*key, r, quick) for key in wanted]


def _case(name: str, dtype: str, batch: int, r: Sequence[int] | None, quick: bool) -> Case:
    model = MODELS[name]
    if r is not None:
        return Case(model, dtype, batch, tuple(dict.fromkeys(r)))
    has_mixed = (
        batch >= MIXED_BATCH and max(model.r) <= max(MIXED) and not (quick and dtype == "fp32")
    )
    return Case(model, dtype, batch, QUICK_R if quick else model.r, MIXED if has_mixed else ())
