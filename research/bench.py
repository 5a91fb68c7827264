"""A model of the catalog and images in memory, on which alternatives of merging are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from server.catalog.profiles import weights_digest
from server.commands.datasets import LabelledData
from server.commands.evaluate import class_indices
from server.commands.labelled_batches import batches
from server.commands.offline import pick_model
from server.engine.device.placement import pick_device, pick_dtype, set_threads
from server.engine.loading.labels import read_labels
from server.engine.loading.model_loader import (
    LoadedModel,
    create_with_weights,
    find_checkpoint,
    load_model,
)
from server.errors import ConfigError
from server.media.modality import Modality
from server.settings import ModelSettings


@dataclass(frozen=True)
class Shape:
    """Shape of a model: its blocks, its input tokens, and how many of these are prefix tokens."""

    depth: int
    tokens: int
    prefix: int


@dataclass(frozen=True)
class Bench:
    """The model, as timm has it and as it is served, and all images in memory.

    Attributes:
        data: the name of the data set.
        pixels: uint8 ``(M, C, H, W)``.
        labels: the model's classes, int64 ``(M,)``; -1 if it has none.
    """

    loaded: LoadedModel
    vit: nn.Module
    device: torch.device
    dtype: torch.dtype
    data: str
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return Shape(self.loaded.depth, self.loaded.tokens, self.loaded.prefix)

    @property
    def weights(self) -> str:
        """What tells the weights from others: the hash of their file, or its name at timm."""
        checkpoint = find_checkpoint(self.loaded.spec)
        if checkpoint is None:
            return self.loaded.spec.timm
        return weights_digest(checkpoint)


def load_bench(settings: ModelSettings, data: LabelledData, model: str = "") -> Bench:
    """Load the model and all images of ``data``.

    Args:
        model: its name in the catalog; by default the first there.

    Raises:
        ConfigError: there is no such model or device, or it does not take images of these classes.
    """
    set_threads(settings.threads)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    spec = pick_model(settings, model)
    loaded = load_model(spec, device, dtype)
    if loaded.transform.modality is not Modality.IMAGE:
        raise ConfigError(f"model {spec.name} takes no images; name another")
    dtype = next(loaded.network.parameters()).dtype
    vit = create_with_weights(spec, read_labels(spec.labels) if spec.labels else None)
    if loaded.labels:
        targets = class_indices(data, loaded.labels)
    else:
        targets = [-1] * len(data.classes)
    parts = list(batches(loaded.transform, data, targets, 1000))
    pixels, labels, _ = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Bench(loaded, vit.eval().to(device), device, dtype, data.name, pixels, labels)


def describe_bench(bench: Bench) -> dict[str, Any]:
    """Return what results depend on, whatever is measured."""
    return {
        "model": bench.loaded.spec.name,
        "weights": bench.weights,
        "data": bench.data,
        "images": len(bench.pixels),
        "tokens": bench.shape.tokens,
        "blocks": bench.shape.depth,
        "device": bench.device.type,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
