"""An engine process with a model that fails when an image tells it to. Only tests run it, in place
of `server.engine`.

The fault is the value of an image's first pixel, so a batch may hold several kinds and the healthy
images between them.
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
    """``network``, unless an image in the batch says otherwise."""

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

    load_model = startup.load_model

    def load_faulty(*arguments: Any) -> Any:
        model = load_model(*arguments)
        return replace(model, network=Faulty(model.network))

    startup.load_model = load_faulty
    errors.is_lost = lambda device: Faulty.lost
    engine.run_process()
