"""An engine process whose device survives neither CUDA graphs nor, without them, the optimised
network.

Only tests run it, in place of `server.engine`.
"""

from __future__ import annotations

from typing import Any

from server.engine import __main__ as engine
from server.engine import startup
from server.engine.device import self_check
from server.engine.device.forward import CaptureFailed
from server.engine.execution.runner import Runner
from server.ipc.engine_config import EngineConfig

if __name__ == "__main__":

    def optimize(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def record_graphs(self: Runner, *_: Any) -> None:
        raise CaptureFailed("raised RuntimeError: operation not permitted when stream is capturing")

    def start_models(config: EngineConfig) -> Any:
        if not config.accelerations.graphs:
            self_check.tome_core.optimize = optimize
        return start(config)

    start = startup.start_models
    startup.start_models = start_models
    Runner.record_graphs = record_graphs  # type: ignore[method-assign]
    self_check.is_lost = lambda device: True
    engine.run_process()
