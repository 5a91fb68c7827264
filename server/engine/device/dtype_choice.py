"""The dtype of a model on a CPU: the fastest of those that the processor supports.

Which one that is depends on the processor, on the kernels that were compiled and on the model. So
each dtype is timed on the model's own first block, with the layers that will serve.

What is measured is the CPU time of one thread. Unlike the time of all threads, it hardly changes
when other processes use the same cores.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import tome_core
from server.engine.device.errors import free_memory
from server.engine.device.self_check import summarize_error

log = logging.getLogger("tome.engine")

# The timed batch: as many images as these MACs allow, at least one. ViT-S takes 15 ms in float32.
MAX_MACS = 2e9
MAX_IMAGES = 8
# Turns end with the budget. A large model on a slow device gets one turn after the first run.
BUDGET_SECONDS = 0.1
MAX_TURNS = 10


@dataclass(frozen=True)
class DtypeChoice:
    """The dtype that serves.

    Attributes:
        speedup: its speed relative to the other that was timed; None if none was.
    """

    dtype: torch.dtype
    speedup: float | None = None


def choose_dtype(
    plain: tome_core.MergedViT,
    dtypes: Sequence[torch.dtype],
    image_shape: tuple[int, int, int],
    levels: Sequence[int],
    model_name: str,
) -> DtypeChoice:
    """Return the fastest of ``dtypes`` for ``plain``, which does not change.

    Args:
        plain: in float32, on the CPU.
        dtypes: the first is chosen if none can be timed.
        image_shape: ``(C, H, W)``.
        levels: values of r; the middle one is timed.
        model_name: for the log.
    """
    ascending = sorted({0, *levels})
    r = ascending[len(ascending) // 2]
    seconds = time_dtypes(plain, dtypes, image_shape, r)
    ranking = sorted(seconds, key=lambda dtype: seconds[dtype])
    if len(ranking) < 2:
        return DtypeChoice(ranking[0] if ranking else dtypes[0])
    fastest, second = ranking[:2]
    speedup = seconds[second] / seconds[fastest]
    log.info(
        "%s: %s is %.2f times as fast here as %s (%.1f and %.1f ms for a batch in the first block)",
        model_name,
        dtype_name(fastest),
        speedup,
        dtype_name(second),
        1000 * seconds[fastest],
        1000 * seconds[second],
    )
    return DtypeChoice(fastest, speedup)


def time_dtypes(
    plain: tome_core.MergedViT,
    dtypes: Sequence[torch.dtype],
    image_shape: tuple[int, int, int],
    r: int,
) -> dict[torch.dtype, float]:
    """Return the seconds of one batch in each dtype, through the embedding and the first block.

    The dtypes take turns, and the shortest time counts: other users of the machine only make it
    longer. A dtype whose network raises has no time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _time_in_turns(plain, dtypes, image_shape, r)
    finally:
        torch.set_num_threads(threads)
        free_memory()  # activations of the dtype that does not serve


def _time_in_turns(
    plain: tome_core.MergedViT,
    dtypes: Sequence[torch.dtype],
    image_shape: tuple[int, int, int],
    r: int,
) -> dict[torch.dtype, float]:
    short = keep_first_block(plain)
    runs: dict[torch.dtype, Callable[[], float]] = {}
    for dtype in dtypes:
        try:
            runs[dtype] = _prepare_run(short, dtype, image_shape, r)
            runs[dtype]()  # compiles, and fills caches
        except Exception as error:  # whatever it raises, another dtype serves
            runs.pop(dtype, None)
            log.warning("%s cannot be timed: it %s", dtype_name(dtype), summarize_error(error))
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in runs}
    deadline = time.monotonic() + BUDGET_SECONDS
    for _ in range(MAX_TURNS):
        for dtype, run in runs.items():
            times[dtype].append(run())
        if time.monotonic() > deadline:
            break
    return {dtype: min(turns) for dtype, turns in times.items()}


def keep_first_block(plain: tome_core.MergedViT) -> tome_core.MergedViT:
    """Return a network with the weights of ``plain``, but without all blocks after the first."""
    network = copy.copy(plain.adapter.network)
    network._modules = dict(network._modules)
    blocks: Any = network.blocks
    network.blocks = blocks[:1]
    short = tome_core.patch(network)
    short.merging = plain.merging
    return short


def _prepare_run(
    short: tome_core.MergedViT,
    dtype: torch.dtype,
    image_shape: tuple[int, int, int],
    r: int,
) -> Callable[[], float]:
    """Return a function that runs one batch in ``dtype`` and returns the seconds."""
    network = tome_core.optimize(short, dtype)
    tokens = network.input_tokens(torch.zeros(1, *image_shape, dtype=dtype))
    image_macs = network.cost().macs(network.token_counts(r, tokens))
    count = min(MAX_IMAGES, max(1, int(MAX_MACS / image_macs)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *image_shape, generator=generator).to(dtype)

    @torch.inference_mode()
    def run() -> float:
        started = time.thread_time()
        # Not the logits: for these the last block, the only one here, skips the patches in its MLP.
        network.forward_features(images, r)
        return time.thread_time() - started

    return run


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of ``dtype``, as in ``float32``."""
    return str(dtype).removeprefix("torch.")
