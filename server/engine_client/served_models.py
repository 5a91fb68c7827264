"""What several engines say of the same models, as one description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.ipc.messages import ModelInfo


def identities(models: tuple[ModelInfo, ...]) -> list[ModelInfo]:
    """What must not differ between engines for any of them to run any job: all but how a device fares with it."""
    return [replace(model, device="", dtype="", acceleration="", levels=()) for model in models]


def merge(described: Sequence[tuple[ModelInfo, ...]]) -> tuple[ModelInfo, ...]:
    """Each model once, as the first engine measured it, on the devices of all."""
    return tuple(
        replace(models[0], device=",".join(model.device for model in models))
        for models in zip(*described, strict=True)
    )
