"""Self check: before it serves, an accelerated network is compared with the plain network.

No test suite can run the kernels of an optimised network on every processor and GPU. So the engine
runs the optimised network (the candidate) and the plain network (the reference) on images of noise
before it serves. If the candidate raises, or differs by more than rounding explains
(`server.engine.device.tolerance`), the engine falls back to the plain network.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tome_core
from server.engine.device.errors import is_lost
from server.engine.device.tolerance import judge, relative_errors
from server.errors import UnsafeAcceleration
from server.ipc.messages import Accelerations
from tome_core.backends.cpu.strategy import KernelStrategy
from tome_core.backends.padded import PaddedStrategy
from tome_core.optimizing import execution_for
from tome_core.schedule import Schedule

log = logging.getLogger("tome.engine")

IMAGES_OF_LEVEL = 2  # in a batch of one level
# The batch of all levels and the batch of the largest level always run, since requests make both.
# The batches of other levels run until the budget is spent.
MIN_BATCHES = 2
BUDGET_SECONDS = 0.5
# If these two alone would take longer, as with the long inputs of large models of sound and video,
# they shrink to one image under each of the smallest and the largest level, and one under the
# largest.
REQUIRED_SECONDS = 10.0
# The first image also loads the libraries of the device. So it is timed again before the batches
# shrink; but not on a CPU where it takes longer than this, since the libraries hardly count then.
LOADING_SECONDS = 3.0

# An error message of a library may contain whole source files.
MAX_MESSAGE_LENGTH = 200

# The names of accelerations in `/models` and in the metrics.
KERNELS = "kernels"
OPERATORS = "operators"
GRAPHS = "graphs"
REFERENCE = "reference"
REFERENCE_GRAPHS = "reference-graphs"


@dataclass(frozen=True)
class CheckBatch:
    """One input of the self check: normalised images ``(B, C, H, W)`` and a schedule for each."""

    images: Tensor
    schedules: tuple[Schedule, ...]


@dataclass(frozen=True)
class SelfCheck:
    """What a candidate network must reproduce, and how closely.

    Attributes:
        batches: the inputs.
        reference_logits: of each batch, by the plain network in float32.
        fallback: the plain network in the dtype of the candidate.
    """

    batches: Sequence[CheckBatch]
    reference_logits: Sequence[Tensor]
    fallback: tome_core.MergedViT

    def run(self, candidate: tome_core.MergedViT) -> str:
        """Return what ``candidate`` does wrong, or an empty string if it passes."""
        try:
            logits = [compute_logits(candidate, batch) for batch in self.batches]
            errors = relative_errors(logits, self.reference_logits)
        except Exception as error:  # a candidate may raise anything; the plain network still serves
            return summarize_error(error)
        # On a CPU oneDNN compiles kernels for every new number of tokens, and keeps them. So the
        # plain network runs one batch there, and the others only where that says nothing: rounding
        # may change a merge in one batch and in none of the first.
        on_cpu = next(self.fallback.parameters()).device.type == "cpu"
        failure = self._judge(errors, self.batches[:1] if on_cpu else self.batches)
        if failure and on_cpu:
            failure = self._judge(errors, self.batches)
        return failure

    def _judge(self, errors: Sequence[float], batches: Sequence[CheckBatch]) -> str:
        """Judge ``errors`` by what rounding does to the plain network in the first batches."""
        dtype = next(self.fallback.parameters()).dtype
        rounding_errors = [0.0]
        if dtype != torch.float32:
            logits = [compute_logits(self.fallback, batch) for batch in batches]
            rounding_errors = relative_errors(logits, self.reference_logits[: len(batches)])
        return judge(errors, rounding_errors, torch.finfo(dtype).eps)


@dataclass(frozen=True)
class CheckedNetwork:
    """The network that serves.

    Its `acceleration` is `KERNELS` or `OPERATORS`, or `REFERENCE` for the plain network.
    """

    network: tome_core.MergedViT
    acceleration: str


def accelerate(
    plain: tome_core.MergedViT,
    dtype: torch.dtype,
    image_shape: tuple[int, int, int],
    levels: Sequence[int],
    model_name: str,
    allowed: Accelerations = Accelerations(),  # noqa: B008, immutable
) -> CheckedNetwork:
    """Optimise ``plain`` for its device and ``dtype``, or fall back to it in ``dtype``.

    ``plain`` is float32 and in evaluation mode. It is modified: the caller must not use it again.

    Args:
        image_shape: ``(C, H, W)``.
        levels: values of r to check, each in a batch of its own and all in one batch.
        model_name: for the log.
        allowed: the accelerations to try.

    Raises:
        UnsafeAcceleration: an acceleration left the device unusable. A new process must start
            without it.
    """
    if not allowed.optimised:
        return CheckedNetwork(plain.to(dtype), REFERENCE)
    device = next(plain.parameters()).device
    batches = make_batches(image_shape, levels, device)
    batches, reference_logits = run_within_budget(plain, batches)
    fallback = copy_with_dtype(plain, dtype)
    check = SelfCheck(batches, reference_logits, fallback)
    try:
        candidate = tome_core.optimize(plain, dtype, in_place=True, kernels=allowed.kernels)
    except Exception as error:  # whatever it raises, the plain network still serves
        return _fall_back(fallback, summarize_error(error), model_name)
    failure = check.run(candidate)
    if failure and uses_triton(candidate):
        _disable_triton(candidate, failure, model_name)
        failure = check.run(candidate)
    if failure:
        return _fall_back(fallback, failure, model_name)
    return CheckedNetwork(candidate, _name_acceleration(candidate))


def uses_triton(network: tome_core.MergedViT) -> bool:
    """Return whether an optimised ``network`` runs any kernel of `tome_core.backends.cuda`."""
    on_gpu = next(network.parameters()).device.type == "cuda"
    merges_by_operators = type(network.execution.strategy) is PaddedStrategy
    return on_gpu and (network.embedding is not None or not merges_by_operators)


def _name_acceleration(network: tome_core.MergedViT) -> str:
    runs_cpu_kernels = isinstance(network.execution.strategy, KernelStrategy)
    if uses_triton(network) or runs_cpu_kernels:
        return KERNELS
    return OPERATORS


def _disable_triton(
    candidate: tome_core.MergedViT,
    failure: str,
    model_name: str,
) -> None:
    """Replace the kernels for GPUs, which failed the self check, by PyTorch's operators.

    Raises:
        UnsafeAcceleration: the device is lost.
    """
    weight = next(candidate.parameters())
    reason = f"model {model_name}: the network with kernels for GPUs {failure}"
    _require_device(weight.device, reason, Accelerations(kernels=False))
    log.warning(
        "%s: the self check rejects the kernels for GPUs, PyTorch's operators replace them:"
        " the network with kernels %s",
        model_name,
        failure,
    )
    candidate.encoder = None
    candidate.embedding = None
    candidate.execution = execution_for(weight.device.type, weight.dtype)


def _fall_back(
    fallback: tome_core.MergedViT,
    failure: str,
    model_name: str,
) -> CheckedNetwork:
    """Return the plain network, and log why the optimised one does not serve.

    Raises:
        UnsafeAcceleration: the device is lost.
    """
    device = next(fallback.parameters()).device
    reason = f"model {model_name}: the optimised network {failure}"
    _require_device(device, reason, Accelerations(optimised=False))
    log.warning(
        "%s: the self check rejects the optimised network, the plain network serves:"
        " the optimised network %s",
        model_name,
        failure,
    )
    return CheckedNetwork(fallback, REFERENCE)


def _require_device(
    device: torch.device,
    reason: str,
    safer: Accelerations,
) -> None:
    """Raise `UnsafeAcceleration` if ``device`` is lost."""
    if is_lost(device):
        raise UnsafeAcceleration(reason, safer)


def copy_with_dtype(network: tome_core.MergedViT, dtype: torch.dtype) -> tome_core.MergedViT:
    """Return a copy of ``network`` in ``dtype``, without an intermediate copy of all weights."""
    # `deepcopy` takes the converted tensors from its memo instead of copying the originals.
    memo: dict[int, Any] = {}
    for weight in (*network.parameters(), *network.buffers()):
        weight_dtype = dtype if weight.is_floating_point() else weight.dtype
        converted = weight.detach().to(weight_dtype, copy=True)
        if isinstance(weight, nn.Parameter):
            converted = nn.Parameter(converted, requires_grad=False)
        memo[id(weight)] = converted
    return copy.deepcopy(network, memo)


def make_batches(
    image_shape: tuple[int, int, int],
    levels: Sequence[int],
    device: torch.device,
) -> list[CheckBatch]:
    """Return a mixed batch of all levels, then one batch a level, the largest first.

    The mixed batch has two images at the largest level and one at each other. The images are noise
    of unit variance, the same at every start. Level 0 is always included.
    """
    generator = torch.Generator().manual_seed(0)

    def make_batch(schedules: tuple[Schedule, ...]) -> CheckBatch:
        images = torch.randn(len(schedules), *image_shape, generator=generator)
        return CheckBatch(images.to(device), schedules)

    all_levels = sorted({0, *levels}, reverse=True)
    schedules = tuple(Schedule.constant(r) for r in all_levels)
    mixed = make_batch(schedules + schedules[:1])
    uniform = [make_batch((schedule,) * IMAGES_OF_LEVEL) for schedule in schedules]
    return [mixed, *uniform]


def run_within_budget(
    network: tome_core.MergedViT,
    batches: Sequence[CheckBatch],
) -> tuple[list[CheckBatch], list[Tensor]]:
    """Return the batches that the time budget allows, at least `MIN_BATCHES`, and their logits.

    Those of a slow network are smaller; see `REQUIRED_SECONDS`.
    """
    first_image = _take(batches[0], [0])
    required_images = sum(len(batch.schedules) for batch in batches[:MIN_BATCHES])
    first_logits, is_slow = _time_image(network, first_image, required_images)
    if is_slow:
        mixed = _fewest_images(batches[0])
        return [mixed, first_image], [compute_logits(network, mixed), first_logits]
    deadline = time.monotonic() + BUDGET_SECONDS
    finished: list[CheckBatch] = []
    logits: list[Tensor] = []
    for batch in batches:
        if len(finished) >= MIN_BATCHES and time.monotonic() > deadline:
            break
        logits.append(compute_logits(network, batch))
        finished.append(batch)
    return finished, logits


def _time_image(
    network: tome_core.MergedViT, image: CheckBatch, required_images: int
) -> tuple[Tensor, bool]:
    """Return the logits of one image, and whether ``required_images`` would take too long."""
    logits, seconds = _run_image(network, image)
    is_slow = required_images * seconds > REQUIRED_SECONDS
    if is_slow and (seconds <= LOADING_SECONDS or logits.is_cuda):
        logits, seconds = _run_image(network, image)
        is_slow = required_images * seconds > REQUIRED_SECONDS
    return logits, is_slow


def _run_image(network: tome_core.MergedViT, image: CheckBatch) -> tuple[Tensor, float]:
    started = time.perf_counter()
    logits = compute_logits(network, image)
    logits.cpu()  # waits for the device
    return logits, time.perf_counter() - started


def _fewest_images(mixed: CheckBatch) -> CheckBatch:
    """Return the first of `make_batches`, cut as `REQUIRED_SECONDS` says."""
    smallest = len(set(mixed.schedules)) - 1  # the levels descend
    return _take(mixed, sorted({0, smallest}))


def _take(batch: CheckBatch, rows: Sequence[int]) -> CheckBatch:
    schedules = tuple(batch.schedules[row] for row in rows)
    return CheckBatch(batch.images[list(rows)], schedules)


@torch.inference_mode()
def compute_logits(network: tome_core.MergedViT, batch: CheckBatch) -> Tensor:
    """Return the logits ``(B, classes)`` of one batch."""
    logits: Tensor = network(batch.images, r=list(batch.schedules))
    return logits


def summarize_error(error: Exception) -> str:
    """Return ``error`` on one line, as a predicate: ``raised TYPE: MESSAGE``."""
    lines = str(error).splitlines()
    message = lines[0][:MAX_MESSAGE_LENGTH] if lines else ""
    return f"raised {type(error).__name__}: {message}"
