"""An engine process whose device survives neither CUDA graphs nor, without them, the optimised network.

Only tests run it, in place of `server.engine`.
"""

from __future__ import annotations

from typing import Any

from server.engine import __main__ as engine
from server.engine import proving, starting
from server.engine.config import EngineConfig
from server.engine.forward import CaptureFailed
from server.engine.runner import Runner

if __name__ == "__main__":

    def optimize(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def record_graphs(self: Runner, *_: Any) -> None:
        raise CaptureFailed("raised RuntimeError: operation not permitted when stream is capturing")

    def start_models(config: EngineConfig) -> Any:
        if not config.accelerations.graphs:
            proving.tome_core.optimize = optimize
        return start(config)

    start, starting.start_models = starting.start_models, start_models
    Runner.record_graphs = record_graphs  # type: ignore[method-assign]
    proving.is_lost = lambda device: True
    engine.run_process()
