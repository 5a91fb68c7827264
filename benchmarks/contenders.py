"""The contenders. Each maps the same float32 images to logits; conversions count as its time."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import tome_core
from benchmarks.cases import DTYPES, Setup
from benchmarks.runtimes import OnnxRuntime, OpenVino
from tome_core.rules import RuleName

Forward = Callable[[Tensor, int | list[int]], Any]


class Contender(Protocol):
    """One way to run a ViT."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    @property
    def merges(self) -> bool:
        """Whether it can run at another r than 0."""
        ...

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the cases it is measured in."""
        ...

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot run here, and what to do about that; None if it can."""
        ...

    def build(self, setup: Setup) -> Forward:
        """Map images ``(B, C, H, W)`` and r, one or one per image, to logits ``(B, classes)``."""
        ...


class Ours:
    """`tome_core.optimize` of the patched model, by the paper's rule or by another.

    Args:
        merging: the rule; another than the paper's gives the contender its name.
    """

    merges = True
    dtypes = tuple(DTYPES)

    def __init__(self, merging: RuleName = "paper") -> None:
        self.name = "ours" if merging == "paper" else merging
        self._merging = merging

    def missing(self, device: torch.device) -> str | None:
        """Never."""
        return None

    def build(self, setup: Setup) -> Forward:
        """As the server loads it."""
        return tome_core.optimize(tome_core.patch(setup.vit, merging=self._merging), setup.dtype)


class Published:
    """The published ToMe code (github.com/facebookresearch/ToMe), from an external checkout.

    Written for timm 0.4.12, it still gives the right answers for a plain ViT of today's timm.
    """

    name = "tome"
    merges = True
    dtypes = tuple(DTYPES)

    def __init__(self, checkout: Path | None) -> None:
        self.checkout = checkout

    def missing(self, device: torch.device) -> str | None:
        """Unless the checkout is there."""
        if self.checkout is None:
            return "name a checkout of github.com/facebookresearch/ToMe with --tome"
        if not (self.checkout / "tome" / "patch" / "timm.py").is_file():
            return (
                f"{self.checkout} is no checkout of github.com/facebookresearch/ToMe; it has no"
                " tome/patch/timm.py"
            )
        return None

    def build(self, setup: Setup) -> Forward:
        """``apply_patch`` on a copy; r is set on the model before each call, as its README says."""
        assert self.checkout is not None
        if str(self.checkout) not in sys.path:
            sys.path.append(str(self.checkout))
        vit: Any = copy.deepcopy(setup.vit).to(setup.dtype)
        importlib.import_module("tome.patch").timm(vit)

        def forward(images: Tensor, r: int | list[int]) -> Tensor:
            vit.r = r
            return vit(images.to(setup.dtype))

        return forward


class Timm:
    """The timm model itself, eager."""

    name = "timm"
    merges = False
    dtypes = tuple(DTYPES)

    def missing(self, device: torch.device) -> str | None:
        """Never."""
        return None

    def build(self, setup: Setup) -> Forward:
        """With timm's fused attention, its default."""
        vit = copy.deepcopy(setup.vit).to(setup.dtype)
        return lambda images, _: vit(images.to(setup.dtype))


class Compiled:
    """The timm model through `torch.compile`, whole, for one static shape.

    On a CPU its weights are frozen, which lets the compiler fold and pack them; on a GPU it records
    CUDA graphs.
    """

    name = "compile"
    merges = False
    dtypes = tuple(DTYPES)

    def missing(self, device: torch.device) -> str | None:
        """Never; without a C++ compiler building fails, which is said then."""
        return None

    def build(self, setup: Setup) -> Forward:
        """It is compiled by the first call."""
        torch.compiler.reset()
        vit = copy.deepcopy(setup.vit).to(setup.dtype).requires_grad_(False)
        how: dict[str, Any] = {"options": {"freezing": True}} if setup.device.type == "cpu" else {}
        if setup.device.type == "cuda":
            how = {"mode": "reduce-overhead"}
        compiled = torch.compile(vit, dynamic=False, fullgraph=True, **how)
        return lambda images, _: compiled(images.to(setup.dtype))


def contenders(checkout: Path | None) -> tuple[Contender, ...]:
    """All, ours first; ``checkout`` is that of the published ToMe code."""
    return (
        Ours(),
        Ours("pairs"),
        Ours("nearest"),
        Published(checkout),
        Timm(),
        Compiled(),
        OnnxRuntime(),
        OpenVino("fp32", "f32"),
        OpenVino("bf16", "bf16"),
    )


def choose(everyone: Sequence[Contender], names: Sequence[str] | None) -> list[Contender]:
    """Those of ``everyone`` in ``names``, by full name or its part before the hyphen; None: all.

    Raises:
        ValueError: a name fits nobody.
    """
    if names is None:
        return list(everyone)
    for name in names:
        if not any(_is(contender, name) for contender in everyone):
            raise ValueError(
                f"there is no contender {name!r}; there are"
                f" {', '.join(one.name for one in everyone)}"
            )
    return [contender for contender in everyone if any(_is(contender, name) for name in names)]


def _is(contender: Contender, name: str) -> bool:
    return name in (contender.name, contender.name.partition("-")[0])
