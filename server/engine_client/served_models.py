"""The served models, combined from the reports of several engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.ipc.messages import ModelInfo


def device_independent(models: tuple[ModelInfo, ...]) -> list[ModelInfo]:
    """Return the models without what may differ between devices.

    The rest must be equal for all engines, so that any of them can run any job.
    """
    return [
        replace(
            model,
            device="",
            dtype="",
            acceleration="",
            dtype_speedup=None,
            levels=(),
        )
        for model in models
    ]


def combine(reports: Sequence[tuple[ModelInfo, ...]]) -> tuple[ModelInfo, ...]:
    """Return each model once: as the first engine reports it, with the devices of all engines."""
    combined = []
    for same_model in zip(*reports, strict=True):
        devices = ",".join(model.device for model in same_model)
        combined.append(replace(same_model[0], device=devices))
    return tuple(combined)
