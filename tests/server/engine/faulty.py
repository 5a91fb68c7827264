"""An engine process with a model that fails when an image tells it to. Only tests run it, in place of `server.engine`.

The fault is the value of an image's first pixel, so a batch may hold several kinds and the healthy images between them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tome_core.pixels import Images, normalised

MEAN, STD = 0.5, 0.25  # of the tiny model
ERROR, NAN, MEMORY, ALONE_TOO_LARGE, SLOW, HANG, STICKY = range(201, 208)
SLOW_SECONDS, FITS = 0.2, 2


class Faulty(nn.Module):
    """``network``, unless an image in the batch says otherwise."""

    lost = False

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.cost = network, network.cost

    def outputs(self, images: Images, r: Any, source: bool) -> Any:
        faults = ((normalised(images)[:, 0, 0, 0] * STD + MEAN) * 255).round().int().tolist()
        if STICKY in faults:
            Faulty.lost = True
        if ERROR in faults or Faulty.lost:
            raise ValueError("injected")
        if (MEMORY in faults and len(faults) > FITS) or ALONE_TOO_LARGE in faults:
            raise torch.OutOfMemoryError("injected")
        time.sleep(SLOW_SECONDS * faults.count(SLOW) + 1e6 * (HANG in faults))
        outputs = self.network.outputs(images, r=r, source=source)
        for index, fault in enumerate(faults):
            if fault == NAN:
                outputs.logits[index, -1] = float("nan")
        return outputs


if __name__ == "__main__":
    from server.engine import __main__ as engine
    from server.engine import faults, starting

    load_model = starting.load_model

    def load_faulty(*arguments: Any) -> Any:
        model = load_model(*arguments)
        return replace(model, network=Faulty(model.network))

    starting.load_model = load_faulty
    faults.is_lost = lambda device: Faulty.lost
    engine.run_process()
