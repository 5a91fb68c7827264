"""Step 2: the server's self check of each model and dtype, and the parts of a start.

Each model and dtype is started in a process of its own, by the very function that an engine runs;
the parts of it are timed from outside, and the errors that the check judges by are written down. A
part that has another name by then has no row.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.day import Day, Row, begin, describe

MODELS = {"B": "vit_base_patch16_224", "S": "vit_small_patch16_224"}
# What serves by default comes first; the other dtypes of the small model alone, for a start takes
# long.
STARTS = ("B bfloat16", "S bfloat16", "S float16", "S float32")
LEVELS = (0, 4, 8, 12, 16)
MAX_BATCH = 128
SECONDS = 40  # for one start
SIZES = (1, 8, 32, 64, 128)
RUNS = 15  # of batches that are timed once it has started


def main(day: Day) -> None:
    """Without a part: one process for each start. With one: that start."""
    if day.part:
        return start(day, *day.part.split())
    for part in ("bundled float32",) if day.dry else STARTS:
        if day.left < 5:
            day.write(what="left out", part=part)
            continue
        started = time.perf_counter()
        try:
            code = subprocess.run(
                day.command("proof", part), timeout=min(SECONDS, day.left)
            ).returncode
            error = f"the process ended with code {code}" if code else ""
        except subprocess.TimeoutExpired:
            error = f"not ready within {time.perf_counter() - started:.0f} s"
        if error:
            model, dtype = part.split()
            day.write(model=model, dtype=dtype, error=error)


def start(day: Day, model: str, dtype: str, *less: str) -> None:
    """One start, instrumented; the row has what there is, even if it fails.

    Args:
        less: accelerations that are left out, as the engine does after one that left the GPU unfit
            for its process.
    """
    safer: Any = None
    row: Row = {
        "model": model,
        "dtype": dtype,
        "less": less,
        "parts_s": {},
        "judged": [],
        "log": [],
    }
    watch(row)
    with day.case(**row) as row, tempfile.TemporaryDirectory() as folder:
        config = catalog(model, Path(folder))
        try:
            import server.engine.startup  # noqa: F401
        except (
            ImportError
        ) as error:  # what the catalog is read with may not be there; the check needs none of it
            row["note"] = f"the check alone: {describe(error)}"
            row.update(check_alone(model, dtype, day.dry))
        else:
            try:
                row.update(whole_start(row, config, dtype, day.dry))
            except Exception as error:
                safer = getattr(error, "safer", None)
                raise
        if not day.dry:
            import torch

            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            row["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    if safer is not None and not less:
        off = [name for name, allowed in dataclasses.asdict(safer).items() if not allowed]
        again = dataclasses.replace(day, part=" ".join((model, dtype, *off)))
        again.restart("proof", f"{model} {dtype} starts without {' and '.join(off)}")


def whole_start(row: Row, config: Path, dtype: str, dry: bool) -> Row:
    """All that an engine does before it is ready."""
    from server.catalog.entries import read_catalog
    from server.engine import startup
    from server.engine.execution.runner import Runner
    from server.engine.loading import model_loader
    from server.ipc.board import BoardSize
    from server.ipc.engine_config import EngineConfig

    parts = row["parts_s"]
    for owner, name in (
        (model_loader, "accelerate"),
        (startup, "load_model"),
        (Runner, "record_graphs"),
        (startup, "measure_costs"),
    ):
        if hasattr(owner, name):
            setattr(owner, name, timed(getattr(owner, name), name, parts))
    wanted: dict[str, Any] = {
        "specs": read_catalog(config, ()),
        "device": "cpu" if dry else "cuda",
        "dtype": dtype,
        "threads": 1 if dry else 0,
        "levels": (0, 8) if dry else LEVELS,
        "max_batch": 2 if dry else MAX_BATCH,
        "max_batch_work": 0.0,
        "engine": 0,
        "board": BoardSize(engines=1, workers=1, slots=8),
        "target_seconds": 1.0,
        "log_level": "info",
    }
    if row["less"]:
        from server.ipc.messages import Accelerations

        wanted["accelerations"] = Accelerations(**dict.fromkeys(row["less"], False))
    known = {field.name for field in dataclasses.fields(EngineConfig)}
    started = time.perf_counter()
    served, infos = startup.start_models(
        EngineConfig(**{key: value for key, value in wanted.items() if key in known})
    )
    info = infos[0]
    calibration = next(iter(served.values())).calibration
    return {
        "kind": info.acceleration,
        "start_s": time.perf_counter() - started,
        "speedups": {level.r: round(level.speedup, 3) for level in info.levels},
        "batch_ms": batches(calibration, wanted["levels"], wanted["max_batch"]),
        "ran_ms": ran(next(iter(served.values())).runner, wanted["levels"], wanted["max_batch"]),
    }


def ran(runner: Any, levels: Sequence[int], max_batch: int) -> dict[str, float]:
    """Milliseconds per batch from pinned pixels to predictions, by graphs where there are any."""
    from tome_core.schedule import Schedule

    found = {}
    for images in (size for size in SIZES if size <= max_batch):
        alike = {
            str(level): [level] * images
            for level in (levels[0], levels[len(levels) // 2], levels[-1])
        }
        for name, each in {
            **alike,
            "mixed": [levels[index % len(levels)] for index in range(images)],
        }.items():
            schedules = [Schedule.constant(r) for r in each]
            times = [runner.seconds(schedules) for _ in range(RUNS)]
            found[f"{images} r={name}"] = round(1000 * statistics.median(times), 3)
    return found


def batches(calibration: Any, levels: tuple[int, ...], most: int) -> dict[str, float]:
    """What the start has learnt that batches of all alike take, by size and r, in milliseconds."""
    from tome_core.schedule import Schedule

    ends = (levels[0], levels[-1])
    try:
        return {
            f"{size} r={r}": round(1000 * calibration.predict([Schedule.constant(r)] * size), 3)
            for size in sorted({1, min(32, most), most})
            for r in ends
        }
    except Exception as error:
        return {describe(error): 0.0}


def check_alone(model: str, dtype: str, dry: bool) -> Row:
    """The self check without a catalog, for a machine that lacks what reads one."""
    import timm
    import torch

    import tome_core
    from server.engine.device.self_check import accelerate

    device = torch.device("cpu" if dry else "cuda")
    vit = timm.create_model(MODELS.get(model, "vit_tiny_patch16_224")).eval()
    started = time.perf_counter()
    size = (3, 224, 224)
    proven = accelerate(tome_core.patch(vit).to(device), getattr(torch, dtype), size, LEVELS, model)
    return {"kind": proven.acceleration, "start_s": time.perf_counter() - started}


def watch(row: Row) -> None:
    """Write down what the engine logs, and the errors that every judgement is made from."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = f"{record.levelname}: {record.getMessage()[:400]}"
            row["log"].append(line)
            print(line, flush=True)  # should the process be killed, the log of the day has it

    logger = logging.getLogger("tome.engine")
    logger.setLevel(logging.INFO)
    logger.addHandler(Lines())
    from server.engine.device import self_check

    judge = self_check.judge

    def judged(found: Any, noise: Any, *rest: Any, **named: Any) -> Any:
        reason = judge(found, noise, *rest, **named)
        row["judged"].append(
            {
                "found": [round(error, 7) for error in found][:40],
                "noise": [round(error, 7) for error in noise][:40],
                "reason": reason,
            }
        )
        return reason

    self_check.judge = judged


def timed(function: Callable[..., Any], name: str, parts: dict[str, float]) -> Callable[..., Any]:
    """``function``, whose seconds are added to ``parts``."""

    def run(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            parts[name] = round(parts.get(name, 0.0) + time.perf_counter() - started, 3)

    return run


def catalog(model: str, folder: Path) -> Path:
    """A models file with random weights; the bundled model where the day is dry."""
    if model not in MODELS:
        return Path(__file__).parents[2] / "server" / "bundled" / "models.toml"
    from benchmarks.checkpoints import write_random_model

    return write_random_model(MODELS[model], folder, seed=0)


if __name__ == "__main__":
    begin(main)
