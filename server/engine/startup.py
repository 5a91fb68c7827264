"""Everything between an engine's configuration and models that take jobs."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from server.allocator import keep_freed_memory, map_large_blocks, release_freed_memory
from server.catalog.entries import read_catalog
from server.engine.device.forward import CaptureFailed
from server.engine.device.placement import (
    choose_kernels,
    make_current,
    pick_device,
    pick_dtype,
    set_threads,
)
from server.engine.device.self_check import KERNELS
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import load_model
from server.engine.loop import Served
from server.engine.scheduling.calibration import Calibration
from server.engine.warmup import describe, level_batch, measure_costs, measure_levels, possible
from server.errors import UnsafeAcceleration
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Accelerations, ModelInfo
from server.latency.cost import Recorded

log = logging.getLogger("tome.engine")


def start_models(config: EngineConfig) -> tuple[dict[str, Served], tuple[ModelInfo, ...]]:
    """Load and warm up every model of the catalog.

    Raises:
        ConfigError: one of them cannot be served; none is then.
        UnsafeAcceleration: a new process has to start, with fewer accelerations.
    """
    specs = read_catalog(config.config, config.models)
    threads = set_threads(config.threads, config.share)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    make_current(device)
    choose_kernels(device)
    served = {}
    described = []
    for spec in specs:
        started = time.perf_counter()
        map_large_blocks()
        runner = Runner(
            load_model(spec, device, dtype, config.levels, config.accelerations), device
        )
        release_freed_memory()
        if runner.acceleration != KERNELS:
            keep_freed_memory()  # from now on: what batches use, the next batch uses again
        if config.accelerations.graphs:
            record_graphs(runner, config)
        levels = possible(runner, config.levels)
        info = describe(runner, ())
        schedules, buckets, mixed = runner.recorded
        recorded = Recorded(frozenset(map(info.geometry.load, schedules)), buckets, mixed)
        samples = measure_costs(runner, levels, config.max_batch, buckets)
        calibration = Calibration(info.geometry, samples, recorded)
        batch = level_batch(
            calibration.predict(levels[:1]), len(levels), config.max_batch, device.type
        )
        info = replace(info, levels=measure_levels(runner, levels, batch))
        release_freed_memory()  # batches of all kinds have left holes in the heap
        served[spec.name] = Served(runner, calibration)
        described.append(info)
        seconds = time.perf_counter() - started
        log.info(
            "%s is ready on %s in %s by %s, %d threads, %.1f s",
            info.name, device, info.dtype, info.acceleration, threads, seconds,
        )  # fmt: skip
    return served, tuple(described)


def record_graphs(runner: Runner, config: EngineConfig) -> None:
    """Raises `UnsafeAcceleration` where that fails: a new process, whose memory is in order, does without graphs."""
    try:
        runner.record_graphs(config.levels, config.max_batch)
    except CaptureFailed as error:
        reason = f"model {runner.model.spec.name}: recording CUDA graphs {error}"
        raise UnsafeAcceleration(reason, Accelerations(graphs=False)) from error
