"""The networks that are counted: ours as `tome_core.optimize` makes it for a GPU, and its peers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tome_core
from benchmarks.launches.counting import Counter, Counts
from tome_core import optimizing
from tome_core.rules import RuleName

R = int | list[int]
Forward = Callable[[Tensor, R], Any]
Build = Callable[[nn.Module], Forward]


@dataclass(frozen=True)
class Pass:
    """One forward pass of a network of ``depth`` blocks.

    Attributes:
        counts: what runs in every pass.
        once: what makes the index tensors of its plan, which are kept as long as the plan is.
    """

    depth: int
    counts: Counts
    once: Counts


def ours(vit: nn.Module, kernels: bool = True, merging: RuleName = "paper") -> Forward:
    """As the server loads it on a GPU, with our own ``kernels`` or without."""
    patched = tome_core.patch(vit, merging=merging)
    with mock.patch.object(optimizing, "has_triton", return_value=True):
        return tome_core.optimize(patched, in_place=True, kernels=kernels)


def pairs(vit: nn.Module) -> Forward:
    """Ours with the rule "pairs"."""
    return ours(vit, merging="pairs")


def operators(vit: nn.Module) -> Forward:
    """Ours with PyTorch's operators alone: the fallback where our kernels cannot serve."""
    return ours(vit, kernels=False)


def plain(vit: nn.Module) -> Forward:
    """The timm model itself, eager."""
    return lambda images, _: vit(images.to(next(vit.parameters()).dtype))


def published(checkout: Path) -> Build:
    """The published ToMe code, from an external checkout (`benchmarks.contenders.Published`)."""

    def build(vit: Any) -> Forward:
        if str(checkout) not in sys.path:
            sys.path.append(str(checkout))
        importlib.import_module("tome.patch").timm(vit)

        def forward(images: Tensor, r: R) -> Any:
            vit.r = r
            return vit(images.to(next(vit.parameters()).dtype))

        return forward

    return build


def count(build: Build, model: str, dtype: torch.dtype, batch: int, r: R, **options: Any) -> Pass:
    """Count one forward pass of ``batch`` float32 images, which lie on the GPU and are normalised.

    Args:
        model: name of a timm architecture, made with ``options``, as ``depth=11``.
        r: for all images, or one each.
    """
    with torch.device("meta"):
        vit = timm.create_model(model, **options).eval()
    depth = len(vit.blocks)
    counter = Counter()
    with FakeTensorMode(), torch.inference_mode():
        put_on_fake_gpu(vit, dtype)
        forward = build(vit)
        images = torch.empty(batch, 3, *vit.patch_embed.img_size, device="cuda")
        with counter.plans_kept(), counter:
            forward(images, r)
    return Pass(depth, counter.counts, counter.once)


def put_on_fake_gpu(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace all parameters and buffers by fake GPU tensors, floating ones in ``dtype``."""
    for module in network.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                kind = dtype if tensor.is_floating_point() else tensor.dtype
                fake: Any = torch.empty(tensor.shape, dtype=kind, device="cuda")
                store[name] = (
                    nn.Parameter(fake, requires_grad=False)
                    if isinstance(tensor, nn.Parameter)
                    else fake
                )
