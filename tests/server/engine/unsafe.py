"""An engine process on whose device CUDA graphs fail, and without them the optimised network.

Tests run it in place of `server.engine`.
"""

from __future__ import annotations

from typing import Any

import tome_core
from server.engine import __main__ as engine
from server.engine import startup
from server.engine.device import self_check
from server.engine.device.forward import CaptureFailed
from server.engine.execution.runner import Runner
from server.ipc.engine_config import EngineConfig

if __name__ == "__main__":

    def optimize(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def record_graphs(self: Runner, max_batch: int) -> None:
        raise CaptureFailed("raised RuntimeError: operation not permitted when stream is capturing")

    def start_models(config: EngineConfig) -> Any:
        if not config.accelerations.graphs:
            tome_core.optimize = optimize
        return start(config)

    start = startup.start_models
    startup.start_models = start_models
    Runner.record_graphs = record_graphs  # type: ignore[method-assign]
    # In place of what it imported.
    self_check.is_lost = lambda device: True  # type: ignore[attr-defined]
    engine.run_process()
