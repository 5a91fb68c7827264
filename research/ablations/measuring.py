"""Run a variant over the images as in serving: same weights, pixels and inference transform."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import tome_core
from research.ablations.results import Result
from research.ablations.variants import Shape, Variant
from server.catalog.profiles import weights_digest
from server.commands.datasets import open_dataset
from server.commands.evaluate import class_indices
from server.commands.labelled_batches import batches
from server.commands.offline import pick_model
from server.engine.device.placement import pick_device, pick_dtype, set_threads
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel, load_model
from server.engine.loading.timm_models import create_timm_model
from server.engine.loading.weights import load_weights
from server.settings import ModelSettings


@dataclass(frozen=True)
class Bench:
    """The model, as timm has it and as it is served, and all images in memory.

    Attributes:
        data: the name of the data set.
        pixels: uint8 ``(M, C, H, W)``.
        labels: the model's classes, int64 ``(M,)``.
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


def load_bench(settings: ModelSettings, folder: Path | None, images: int | None) -> Bench:
    """The first model of the settings and the first ``images`` test images in ``folder``.

    See `open_dataset` for the images.

    Raises:
        ConfigError: the data set or the device is not there.
    """
    set_threads(settings.threads)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    spec = pick_model(settings, "")
    data = open_dataset(folder, images)
    loaded = load_model(spec, device, dtype)
    dtype = next(loaded.network.parameters()).dtype
    vit = create_timm_model(spec, len(loaded.labels), pretrained=False)
    assert spec.checkpoint is not None
    load_weights(vit, spec.checkpoint)
    targets = class_indices(data, loaded.labels)
    parts = list(batches(loaded.transform, data, targets, 1000))
    pixels, labels, _ = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Bench(loaded, vit.eval().to(device), device, dtype, data.name, pixels, labels)


def describe(bench: Bench, r: int, batch: int, seed: int) -> dict[str, Any]:
    """All that results depend on, and what the report says of the images."""
    spec = bench.loaded.spec
    assert spec.checkpoint is not None
    return {
        "model": spec.name,
        "weights": weights_digest(spec.checkpoint),
        "data": bench.data,
        "images": len(bench.pixels),
        "black_patches": round(black_patches(bench), 4),
        "r": r,
        "tokens": bench.shape.tokens,
        "blocks": bench.shape.depth,
        "batch": batch,
        "seed": seed,
        "device": bench.device.type,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def black_patches(bench: Bench) -> float:
    """The share of all patches in which every pixel is 0."""
    embed: Any = bench.vit.patch_embed
    height, width = embed.patch_size
    pixels = bench.pixels
    images, channels = pixels.shape[:2]
    patches = pixels.reshape(
        images, channels, pixels.shape[2] // height, height, pixels.shape[3] // width, width
    )
    return float((patches.max(axis=(1, 3, 5)) == 0).mean())


def measure(
    bench: Bench,
    variant: Variant,
    r: int,
    batch: int,
    seed: int,
    advance: Callable[[int], object] = lambda images: None,
) -> Result:
    """Classify all images under ``variant``; ``advance`` gets the number done after each batch."""
    schedule = variant.schedule(r, bench.shape)
    network = tome_core.optimize(variant.patch(bench.vit), bench.dtype)
    runner = Runner(replace(bench.loaded, network=network), bench.device)
    torch.manual_seed(seed)
    correct = []
    started = time.perf_counter()
    for start in range(0, len(bench.pixels), batch):
        pixels = bench.pixels[start : start + batch]
        classes = runner.logits(pixels, [schedule] * len(pixels)).argmax(dim=-1).cpu().numpy()
        correct.append(classes == bench.labels[start : start + batch])
        advance(len(pixels))
    counts = network.token_counts(schedule, bench.shape.tokens)
    flops = round(network.cost().relative(counts), 4)
    seconds = round(time.perf_counter() - started, 1)
    return Result(np.concatenate(correct), str(schedule), counts[-1], flops, seconds)
