"""Resident memory of an engine under load: ``python -m benchmarks.memory MODELS.TOML``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import Memory

MODEL = "vit_base_patch16_224"
DTYPE = "bfloat16"
BATCH = 32
LEVELS = (0, 8, 16)
ROUNDS = 3
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def measure_memory(threads: int) -> Memory | None:
    """ViT-B in bfloat16 at batch 32, on the CPU; None where the kernel reports no memory use."""
    if not _STATUS.is_file():
        return None
    # Imported here: the measured process imports this module too, and has only what an engine has.
    from benchmarks.checkpoints import write_random_model
    from server.supervision.child import environment

    with tempfile.TemporaryDirectory() as folder:
        config = write_random_model(MODEL, Path(folder))
        command = [sys.executable, "-m", "benchmarks.memory", str(config), str(threads)]
        printed = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment()
        ).stdout
    return Memory(MODEL, DTYPE, BATCH, **json.loads(printed.splitlines()[-1]))


def _engine(config: Path, threads: int) -> dict[str, float]:
    """Start like the engine, run full batches; MB above the memory after the imports."""
    from server.catalog.entries import read_catalog
    from server.engine.startup import start_models
    from server.ipc.board import BoardSize
    from server.ipc.engine_config import EngineConfig
    from tome_core.schedule import Schedule

    imports = megabytes("VmRSS")
    given: dict[str, Any] = {
        "target_seconds": 1.0,
        "log_level": "error",
        "board": BoardSize(engines=1, workers=1, slots=BATCH),
    }
    specs = read_catalog(config, ())
    served, _ = start_models(
        EngineConfig(specs, "cpu", DTYPE, threads, LEVELS, BATCH, 0, engine=0, **given)
    )
    loading = megabytes("VmHWM")
    clear_peak()
    for _ in range(ROUNDS):
        for r in LEVELS:
            served[MODEL].runner.seconds([Schedule.constant(r)] * BATCH)
    return {"imports": imports, "loading": loading - imports, "load": megabytes("VmHWM") - imports}


def clear_peak() -> None:
    """Set this process's high-water mark back to what is resident now (proc(5))."""
    _CLEAR.write_text("5")


def megabytes(name: str) -> float:
    """A field of /proc/self/status, which is in units of 1024 bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    print(json.dumps(_engine(Path(sys.argv[1]), int(sys.argv[2]))))
