"""Proof that an acceleration computes, on this very device, what the plain network does: before any request needs it.

An optimised network rests on kernels that no test could try on every processor and every GPU. So it
meets the plain one on a few images of noise, and where they differ by more than rounding explains,
or where it fails, the plain network is what serves.

Matching is a choice, so rounding alone makes a network in 16 bits differ from one in float32, now
and then by a lot. What it may differ by is therefore measured: by how much the plain network does,
in the same dtype.
"""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tome_core
from server.engine.device.errors import is_lost
from server.errors import UnsafeAcceleration
from server.ipc.messages import Accelerations
from tome_core.backends.cpu.strategy import Kernels
from tome_core.backends.padded import Offsets
from tome_core.optimizing import merging_for
from tome_core.schedule import Schedule

log = logging.getLogger("tome.engine")

IMAGES = 2  # of each level
# A batch of all levels and one of the largest alone run in any case, since both kinds serve;
# further levels only until the budget is spent.
FIRST = 2
BUDGET_SECONDS = 1.0
# An acceleration is right if its errors are at most so many times those of the plain network in its
# dtype, and that much more: of the median image (and the dtype's own resolution), and of the worst,
# for a merge that went another way.
FACTOR = 3.0
TYPICAL = 1e-3
WORST = 0.05
KERNELS = "kernels"
OPERATORS = "operators"
GRAPHS = "graphs"
REFERENCE = "reference"
REFERENCE_GRAPHS = "reference-graphs"


@dataclass(frozen=True)
class Case:
    """One batch to compare on: ``(B, C, H, W)``, normalised, and one schedule an image."""

    images: Tensor
    schedules: tuple[Schedule, ...]


@dataclass(frozen=True)
class Evidence:
    """What a network has to agree with: exact logits of some cases, and by how much rounding alone misses them.

    Attributes:
        noise: as `judge` has it.
        resolution: likewise.
    """

    cases: Sequence[Case]
    exact: Sequence[Tensor]
    noise: Sequence[float]
    resolution: float

    def against(self, network: tome_core.MergedViT) -> str:
        """What ``network`` does wrong; empty if nothing."""
        try:
            logits = [run(network, case) for case in self.cases]
            return judge(errors(logits, self.exact), self.noise, self.resolution)
        except Exception as error:  # whatever an acceleration raises concerns it alone
            return describe(error)


@dataclass(frozen=True)
class Proven:
    """The network that serves, and by what it is fast: `KERNELS`, `OPERATORS`, or `REFERENCE` for nothing."""

    network: tome_core.MergedViT
    kind: str


def accelerate(
    plain: tome_core.MergedViT,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    levels: Sequence[int],
    name: str,
    allowed: Accelerations = Accelerations(),  # noqa: B008, immutable
) -> Proven:
    """``plain`` optimised for its device and ``dtype`` as far as that proves right, at worst itself in ``dtype``.

    ``plain`` is float32 and evaluates, and is the caller's no more.

    Args:
        size: ``(C, H, W)`` of an image.
        levels: values of r to try, each for all images and all in one batch.
        name: of the model, for the log.
        allowed: what may be tried.

    Raises:
        UnsafeAcceleration: trying it took the device down, so that only a new process can go on,
            without it.
    """
    if not allowed.optimised:
        return Proven(plain.to(dtype), REFERENCE)
    device = next(plain.parameters()).device
    cases, exact = run_within_budget(plain, make_cases(size, levels, device))
    reference = copy_in(plain, dtype)
    # On a CPU the mixed batch alone: oneDNN compiles, and keeps, its kernels for every number of
    # tokens that it meets.
    rounded = cases[:1] if device.type == "cpu" else cases
    noise = [0.0]
    if dtype != torch.float32:
        noise = errors([run(reference, case) for case in rounded], exact[: len(rounded)])
    evidence = Evidence(cases, exact, noise, torch.finfo(dtype).eps)
    try:
        fast = tome_core.optimize(plain, dtype, in_place=True, kernels=allowed.kernels)
    except Exception as error:  # whatever an acceleration raises concerns it alone
        return _fall_back(reference, describe(error), name, device)
    wrong = evidence.against(fast)
    if wrong and uses_triton(fast):
        _check_device(
            device,
            f"model {name}: the network with kernels for GPUs {wrong}",
            Accelerations(kernels=False),
        )
        log.warning(
            "%s: kernels for GPUs are not used, PyTorch's operators are, because it %s", name, wrong
        )
        fast.encoder = fast.embedding = None
        fast.merging = merging_for(fast.merging, device.type, dtype)
        wrong = evidence.against(fast)
    if wrong:
        return _fall_back(reference, wrong, name, device)
    by_kernels = uses_triton(fast) or isinstance(fast.merging.strategy, Kernels)
    return Proven(fast, KERNELS if by_kernels else OPERATORS)


def uses_triton(network: tome_core.MergedViT) -> bool:
    """Whether ``network``, which is optimised, runs any kernel of `tome_core.backends.cuda`."""
    on_gpu = next(network.parameters()).device.type == "cuda"
    return on_gpu and (
        network.embedding is not None or type(network.merging.strategy) is not Offsets
    )


def _fall_back(
    reference: tome_core.MergedViT, wrong: str, name: str, device: torch.device
) -> Proven:
    safer = Accelerations(optimised=False)
    _check_device(device, f"model {name}: the optimised network {wrong}", safer)
    log.warning(
        "%s: the optimised network is not used, the plain one is, because it %s", name, wrong
    )
    return Proven(reference, REFERENCE)


def _check_device(device: torch.device, reason: str, safer: Accelerations) -> None:
    """Raises `UnsafeAcceleration` if ``device`` did not survive what ``reason`` tells."""
    if is_lost(device):
        raise UnsafeAcceleration(reason, safer)


def copy_in(network: tome_core.MergedViT, dtype: torch.dtype) -> tome_core.MergedViT:
    """A copy with weights in ``dtype``, which are never there in another one too."""
    weights = (*network.parameters(), *network.buffers())
    memo: dict[int, Any] = {}
    for weight in weights:
        copied = weight.detach().to(
            dtype if weight.is_floating_point() else weight.dtype, copy=True
        )
        memo[id(weight)] = (
            nn.Parameter(copied, requires_grad=False)
            if isinstance(weight, nn.Parameter)
            else copied
        )
    return copy.deepcopy(network, memo)


def judge(found: Sequence[float], noise: Sequence[float], resolution: float) -> str:
    """What is wrong with errors ``found``, one an image, beside those that rounding makes, ``noise``; empty if nothing.

    Args:
        resolution: of the dtype, as a share of the value.
    """
    for kind, summary, extra in (
        ("typically", statistics.median, TYPICAL + resolution),
        ("at worst", max, WORST),
    ):
        error = summary(found)
        limit = FACTOR * summary(noise) + extra
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


def make_cases(
    size: tuple[int, int, int], levels: Sequence[int], device: torch.device
) -> list[Case]:
    """A mixed batch of all levels, then a batch of each, the largest first: noise of unit variance."""
    generator = torch.Generator().manual_seed(0)

    def noise(count: int) -> Tensor:
        return torch.randn(count, *size, generator=generator).to(device)

    schedules = [Schedule.constant(r) for r in sorted({0, *levels}, reverse=True)]
    mixed = tuple(schedules) * IMAGES
    return [
        Case(noise(len(mixed)), mixed),
        *(Case(noise(IMAGES), (schedule,) * IMAGES) for schedule in schedules),
    ]


def run_within_budget(
    network: tome_core.MergedViT, cases: Sequence[Case]
) -> tuple[list[Case], list[Tensor]]:
    """The cases that the budget allows, at least the `FIRST`, and their logits."""
    # Untimed, since the first pass of a process loads the libraries of its device: one image is
    # enough for that.
    run(network, Case(cases[0].images[:1], cases[0].schedules[:1]))
    end = time.monotonic() + BUDGET_SECONDS
    done: list[Case] = []
    logits: list[Tensor] = []
    for case in cases:
        if len(done) >= FIRST and time.monotonic() > end:
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
