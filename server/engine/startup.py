"""Startup of the engine: from its configuration to models that accept jobs."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch

from server.allocator import keep_freed_memory, map_large_blocks, release_freed_memory
from server.engine.device.forward import CaptureFailed
from server.engine.device.placement import (
    configure_pytorch,
    pick_device,
    pick_dtype,
    set_current_device,
    set_threads,
)
from server.engine.device.self_check import KERNELS
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel, load_model
from server.engine.loading.room import check_room
from server.engine.loop import EngineModel
from server.engine.scheduling.calibration import Calibration
from server.engine.warmup import (
    describe_levels,
    level_schedules,
    measure_costs,
    model_info,
)
from server.errors import UnsafeAcceleration
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Accelerations, ModelInfo
from server.latency.cost import RecordedGraphs
from server.logs import log_step
from tome_core.backends.cpu.library import limit_isa

log = logging.getLogger("tome.engine")


def start_models(config: EngineConfig) -> tuple[dict[str, EngineModel], tuple[ModelInfo, ...]]:
    """Load and warm up every model of the catalog.

    Raises:
        ConfigError: a model cannot be served; then none is.
        UnsafeAcceleration: a new process has to start, with fewer accelerations.
    """
    limit_isa(config.cpu_isa)
    threads = set_threads(config.threads, config.board.engines)
    with log_step(log, f"opening device {config.device}"):
        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, device)
        set_current_device(device)
        configure_pytorch(device)
    if config.generation:
        check_room(config.specs, device)
    served = {}
    infos = []
    for spec in config.specs:
        started = time.perf_counter()
        map_large_blocks()
        model = load_model(spec, device, dtype, config.levels, config.accelerations)
        served[spec.name], info = warm_up(model, device, config)
        infos.append(info)
        seconds = time.perf_counter() - started
        log.info(
            "%s is ready on %s in %s by %s, %d threads, %.1f s",
            info.name,
            device,
            info.dtype,
            info.acceleration,
            threads,
            seconds,
        )
    return served, tuple(infos)


def warm_up(
    model: LoadedModel,
    device: torch.device,
    config: EngineConfig,
) -> tuple[EngineModel, ModelInfo]:
    """Record graphs of a loaded model, and calibrate its cost model."""
    runner = Runner(model, device)
    release_freed_memory()
    if runner.acceleration != KERNELS:
        keep_freed_memory()  # from now on each batch reuses the memory of the batch before it
    if config.accelerations.graphs:
        record_graphs(runner, config)
    name = model.spec.name
    levels = level_schedules(runner)
    info = model_info(runner, levels=())
    coverage = runner.recorded
    image_costs = frozenset(info.geometry.image_cost(schedule) for schedule in coverage.schedules)
    recorded = RecordedGraphs(image_costs, coverage.buckets, coverage.any_mix)
    with log_step(log, f"{name}: calibrating the cost model on {device}"):
        samples = measure_costs(runner, levels, config.max_batch, coverage.buckets)
    calibration = Calibration(info.geometry, samples, recorded)
    described = describe_levels(runner, levels, calibration, config.max_batch)
    return EngineModel(runner, calibration), replace(info, levels=described)


def record_graphs(runner: Runner, config: EngineConfig) -> None:
    """Record CUDA graphs.

    Raises:
        UnsafeAcceleration: recording failed, which may leave the device's memory inconsistent; a
            new process has to start, without graphs.
    """
    try:
        runner.record_graphs(config.max_batch)
    except CaptureFailed as error:
        reason = f"model {runner.model.spec.name}: recording CUDA graphs {error}"
        raise UnsafeAcceleration(reason, Accelerations(graphs=False)) from error
