"""An engine process whose model fails on chosen images; tests run it in place of `server.engine`.

The value of an image's first pixel selects the fault, so one batch may hold several faults, and
images without one between them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tome_core.pixels import Images, normalised

MEAN = 0.5
STD = 0.25  # of the tiny model
ERROR, NAN, MEMORY, ALONE_TOO_LARGE, SLOW, HANG, STICKY = range(201, 208)
SLOW_SECONDS = 0.2
FITS = 2


class Faulty(nn.Module):
    """Runs ``network``, unless an image in the batch selects a fault."""

    lost = False

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.cost = network.cost

    def outputs(self, images: Images, r: Any, source: bool) -> Any:
        errors = ((normalised(images)[:, 0, 0, 0] * STD + MEAN) * 255).round().int().tolist()
        if STICKY in errors:
            Faulty.lost = True
        if ERROR in errors or Faulty.lost:
            raise ValueError("injected")
        if (MEMORY in errors and len(errors) > FITS) or ALONE_TOO_LARGE in errors:
            raise torch.OutOfMemoryError("injected")
        time.sleep(SLOW_SECONDS * errors.count(SLOW) + 1e6 * (HANG in errors))
        outputs = self.network.outputs(images, r=r, source=source)
        for index, fault in enumerate(errors):
            if fault == NAN:
                outputs.logits[index, -1] = float("nan")
        return outputs


if __name__ == "__main__":
    from server.engine import __main__ as engine
    from server.engine import startup
    from server.engine.device import errors
    from server.engine.loading.model_loader import load_model

    def load_faulty(*arguments: Any, **more: Any) -> Any:
        model = load_model(*arguments, **more)
        network: Any = Faulty(model.network)
        return replace(model, network=network)

    # In place of what it imported.
    startup.load_model = load_faulty  # type: ignore[attr-defined]
    errors.is_lost = lambda device: Faulty.lost
    engine.run_process()
