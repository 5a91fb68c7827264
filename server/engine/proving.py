"""Proof that an acceleration computes, on this very device, what the plain network does: before any request needs it.

An optimised network rests on kernels that no test could try on every processor and every GPU. So it meets the plain
one on a few images of noise, and where they differ by more than rounding explains, or where it fails, the plain network
is what serves.

Matching is a choice, so rounding alone makes a network in 16 bits differ from one in float32, now and then by a lot.
What it may differ by is therefore measured: by how much the plain network does, in the same dtype.
"""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tome_core
from tome_core.native.strategy import Kernels
from tome_core.schedule import Schedule

log = logging.getLogger("tome.engine")

IMAGES = 2  # of each level
BUDGET_SECONDS = 1.0  # after which no further level is tried; the mixed batch has them all
# An acceleration is right if its errors are at most so many times those of the plain network in its dtype, and that
# much more: of the median image (and the dtype's own resolution), and of the worst, for a merge that went another way.
FACTOR, TYPICAL, WORST = 3.0, 1e-3, 0.05
KERNELS, REFERENCE = "kernels", "reference"

Network = Callable[[Tensor, Sequence[Schedule]], Tensor]


@dataclass(frozen=True)
class Case:
    """One batch to compare on: ``(B, C, H, W)``, normalised, and one schedule an image."""

    images: Tensor
    schedules: tuple[Schedule, ...]


@dataclass(frozen=True)
class Proven:
    """The network that serves, and by what it is fast: ``kernels``, ``operators``, or ``reference`` for nothing."""

    network: tome_core.MergedViT
    kind: str


def accelerate(
    plain: tome_core.MergedViT, dtype: torch.dtype, size: tuple[int, int, int], levels: Sequence[int], name: str
) -> Proven:
    """``plain`` optimised for its device and ``dtype`` if that proves right, else itself in ``dtype``.

    ``plain`` is float32 and evaluates, and is the caller's no more.

    Args:
        size: ``(C, H, W)`` of an image.
        levels: values of r to try, each for all images and all in one batch.
        name: of the model, for the log.
    """
    device = next(plain.parameters()).device
    cases, exact = run_within_budget(plain, make_cases(size, levels, device))
    reference = copy_in(plain, dtype)
    # The mixed batch alone: oneDNN compiles, and keeps, its kernels for every number of tokens that it meets.
    noise = [0.0] if dtype == torch.float32 else errors([run(reference, cases[0])], exact[:1])
    try:
        fast = tome_core.optimize(plain, dtype, in_place=True)
    except Exception as error:  # whatever an acceleration raises concerns it alone
        return _fall_back(reference, describe(error), name)
    reason = reason_against(lambda: [run(fast, case) for case in cases], exact, noise, dtype)
    if reason:
        return _fall_back(reference, reason, name)
    return Proven(fast, KERNELS if isinstance(fast.merging.strategy, Kernels) else "operators")


def copy_in(network: tome_core.MergedViT, dtype: torch.dtype) -> tome_core.MergedViT:
    """A copy with weights in ``dtype``, which are never there in another one too."""
    weights = (*network.parameters(), *network.buffers())
    memo: dict[int, Any] = {}
    for weight in weights:
        copied = weight.detach().to(dtype if weight.is_floating_point() else weight.dtype, copy=True)
        memo[id(weight)] = nn.Parameter(copied, requires_grad=False) if isinstance(weight, nn.Parameter) else copied
    return copy.deepcopy(network, memo)


def _fall_back(plain: tome_core.MergedViT, reason: str, name: str) -> Proven:
    log.warning("%s: the optimised network is not used, the plain one is, because it %s", name, reason)
    return Proven(plain, REFERENCE)


def reason_against(
    attempt: Callable[[], Sequence[Tensor]], exact: Sequence[Tensor], noise: Sequence[float], dtype: torch.dtype
) -> str:
    """What ``attempt``, an acceleration's logits of each case, does wrong; empty if nothing."""
    try:
        found = errors(attempt(), exact)
    except Exception as error:
        return describe(error)
    return judge(found, noise, torch.finfo(dtype).eps)


def judge(found: Sequence[float], noise: Sequence[float], resolution: float) -> str:
    """What is wrong with errors ``found``, one an image, beside those that rounding makes, ``noise``; empty if nothing.

    Args:
        resolution: of the dtype, as a share of the value.
    """
    for kind, summary, extra in (
        ("typically", statistics.median, TYPICAL + resolution),
        ("at worst", max, WORST),
    ):
        error, limit = summary(found), FACTOR * summary(noise) + extra
        if error > limit:
            return f"{kind} differs by {error:.2g} of the logits, where {limit:.2g} is allowed"
    return ""


def errors(logits: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """How far off each image of each case is, as a share of its exact logits (Euclidean norms); infinity for NaN."""
    found: list[float] = []
    for got, wanted in zip(logits, exact, strict=True):
        if got.shape != wanted.shape:
            raise ValueError(f"logits of shape {tuple(got.shape)} instead of {tuple(wanted.shape)}")
        off = (got.double().cpu() - wanted.double().cpu()).flatten(1).norm(dim=1)
        found += (off / wanted.double().cpu().flatten(1).norm(dim=1).clamp_min(1e-30)).tolist()
    return [math.inf if math.isnan(error) else error for error in found]


def make_cases(size: tuple[int, int, int], levels: Sequence[int], device: torch.device) -> list[Case]:
    """A mixed batch of all levels, then a batch of each, the largest first: noise of unit variance."""
    generator = torch.Generator().manual_seed(0)

    def noise(count: int) -> Tensor:
        return torch.randn(count, *size, generator=generator).to(device)

    schedules = [Schedule.constant(r) for r in sorted({0, *levels}, reverse=True)]
    mixed = tuple(schedules) * IMAGES
    return [Case(noise(len(mixed)), mixed), *(Case(noise(IMAGES), (schedule,) * IMAGES) for schedule in schedules)]


def run_within_budget(network: tome_core.MergedViT, cases: Sequence[Case]) -> tuple[list[Case], list[Tensor]]:
    """The cases that the budget allows, at least the first, and their logits."""
    end = time.monotonic() + BUDGET_SECONDS
    done: list[Case] = []
    logits: list[Tensor] = []
    for case in cases:
        if done and time.monotonic() > end:
            break
        logits.append(run(network, case))
        done.append(case)
    return done, logits


@torch.inference_mode()
def run(network: tome_core.MergedViT, case: Case) -> Tensor:
    """Logits of one case."""
    logits: Tensor = network(case.images, r=list(case.schedules))
    return logits


def describe(error: Exception) -> str:
    """``error`` on one line."""
    first = next(iter(str(error).splitlines()), "")
    return f"raised {type(error).__name__}: {first[:200]}"
