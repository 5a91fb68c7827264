"""From a catalog entry to a model that is ready to run, with all of its parts checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch

import tome_core
from server.catalog.entries import ModelSpec
from server.catalog.profiles import read_profile
from server.engine.device.dtype_choice import DtypeChoice, choose_dtype, dtype_name
from server.engine.device.placement import cpu_dtypes
from server.engine.device.self_check import REFERENCE, accelerate
from server.engine.loading.checkpoints import find_weights_file, read_json
from server.engine.loading.data_config import (
    expand_to_channels,
    make_transform,
    resolve_data_config,
)
from server.engine.loading.labels import default_labels, read_labels, resolve_labels
from server.engine.loading.transformers_models import load_transformers_model
from server.engine.loading.weights import load_weights
from server.errors import ConfigError
from server.ipc.messages import Accelerations
from server.logs import log_step
from server.media.transforms import ImageTransform

log = logging.getLogger("tome.engine")


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with what is needed to prepare its input and to name its classes.

    Attributes:
        mean, std: per channel, for pixels on a scale of 0 to 1.
        labels: of the classes; empty for a model without a classifier.
        tokens, prefix: number of all tokens and of prefix tokens at the input of the first block.
        depth: number of blocks.
        grid: rows and columns of patches.
        accuracy: by the text of a schedule, from the model's profile.
        acceleration: of the network; see `server.engine.device.self_check`.
        dtype_speedup: see `server.ipc.messages.ModelInfo`.
    """

    spec: ModelSpec
    network: tome_core.MergedViT
    transform: ImageTransform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    tokens: int
    prefix: int
    depth: int
    grid: tuple[int, int]
    accuracy: dict[str, float]
    acceleration: str
    dtype_speedup: float | None = None


def load_model(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype | None,
    levels: Sequence[int] = (0, 8, 16),
    allowed: Accelerations = Accelerations(),  # noqa: B008, immutable
) -> LoadedModel:
    """Create the model of ``spec``, load its weights, patch it, optimise it and check it.

    Args:
        dtype: None for the fastest that the CPU supports; but float32, whatever its speed, if the
            self check rejects the optimised network in the fastest.
        levels: values of r for the self check.
        allowed: the accelerations to try.

    Raises:
        ConfigError: ``spec`` cannot be served; the message says why.
        UnsafeAcceleration: see `server.engine.device.self_check.accelerate`.
    """
    model = _load_once(spec, device, dtype, levels, allowed)
    speedup = model.dtype_speedup
    chosen = next(model.network.parameters()).dtype
    is_rejected = allowed.optimised and model.acceleration == REFERENCE
    if dtype is not None or not is_rejected or chosen == torch.float32:
        return model
    log.warning(
        "%s: float32 serves instead of the plain network in %s", spec.name, dtype_name(chosen)
    )
    del model  # before it is in memory twice
    model = _load_once(spec, device, torch.float32, levels, allowed)
    return replace(model, dtype_speedup=1 / speedup if speedup else None)


def _load_once(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype | None,
    levels: Sequence[int],
    allowed: Accelerations,
) -> LoadedModel:
    labels = read_labels(spec.labels) if spec.labels else None
    vit = _create_with_weights(spec, labels)
    plain = _patch(spec, vit)
    data = resolve_data_config(spec, vit)
    image_shape = data["input_size"]
    if dtype is None:
        with log_step(log, f"{spec.name}: timing the dtypes of the processor"):
            choice = choose_dtype(plain, cpu_dtypes(), image_shape, levels, spec.name)
    else:
        choice = DtypeChoice(dtype)
    target = f"{device} in {dtype_name(choice.dtype)}"
    with log_step(log, f"{spec.name}: optimising for {target}, and the self check"):
        checked = accelerate(
            plain.to(device), choice.dtype, image_shape, levels, spec.name, allowed
        )
    network = checked.network
    channels = image_shape[0]
    blank = torch.zeros(1, *image_shape, device=device)
    return LoadedModel(
        spec=spec,
        network=network,
        transform=make_transform(data),
        mean=expand_to_channels(data["mean"], channels),
        std=expand_to_channels(data["std"], channels),
        labels=resolve_labels(spec, labels or default_labels(vit), vit.num_classes),
        tokens=network.input_tokens(blank),
        prefix=network.adapter.prefix,
        depth=len(network.adapter.blocks),
        grid=network.patch_grid(blank),
        accuracy=_read_accuracy(spec),
        acceleration=checked.acceleration,
        dtype_speedup=choice.speedup,
    )


def _create_with_weights(spec: ModelSpec, labels: Sequence[str] | None) -> Any:
    path = find_checkpoint(spec)
    if spec.folder is not None:
        config = read_json(spec.folder / "config.json")
        if path is not None and is_of_transformers(spec.folder, config):
            with log_step(log, f"{spec.name}: loading {spec.folder}, a model of transformers"):
                return load_transformers_model(spec, spec.folder, path, config)
    classes = len(labels) if labels else None
    source = path or "timm's weights, from the hub or its cache"
    with log_step(log, f"{spec.name}: loading {spec.timm} with {source}"):
        vit = create_timm_model(spec, classes, pretrained=path is None)
        if path:
            load_weights(vit, path, spec.prefix)
    if not path:
        check_classifier(spec, vit)
    return vit


def is_of_transformers(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether a folder holds a model of transformers, and not of timm.

    Args:
        folder: for the message.
        config: the content of its ``config.json``.

    Raises:
        ConfigError: it is of neither.
    """
    if "architecture" in config:
        return False
    if "model_type" in config:
        return True
    raise ConfigError(
        f"{folder}/config.json describes no model of timm or transformers: it has neither"
        f" 'architecture' nor 'model_type', but {', '.join(list(config)[:5]) or 'nothing'}"
    )


def find_checkpoint(spec: ModelSpec) -> Path | None:
    """Return the weights file of the entry, or of its folder; None for timm's own weights."""
    if spec.checkpoint is None and spec.folder is not None:
        return find_weights_file(spec.folder)
    return spec.checkpoint


def create_timm_model(spec: ModelSpec, classes: int | None, *, pretrained: bool) -> Any:
    """Create the timm model, with timm's own weights if ``pretrained``.

    Args:
        classes: their number, unless the entry sets it; None for timm's.

    Raises:
        ConfigError: timm or the hub raised.
    """
    if spec.num_classes is not None:
        classes = spec.num_classes
    optional = {
        "num_classes": classes,
        "img_size": spec.img_size,
        "in_chans": spec.in_chans,
    }
    arguments = dict(spec.model_args)
    for name, value in optional.items():
        if value is not None:
            arguments[name] = value
    try:
        return timm.create_model(spec.timm, pretrained=pretrained, **arguments)
    except Exception as error:  # timm and the hub raise many types
        message = (
            f"timm cannot create {spec.timm!r} for model {spec.name}: {_summarize_error(error)}"
        )
        if pretrained:
            message += (
                "; without a network, name a checkpoint file"
                " (HF_HUB_OFFLINE=1 skips the hub's retries)"
            )
        raise ConfigError(message) from error


def _summarize_error(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args == ("architecture",):
        return (
            "its config.json names no architecture of timm; download a model of transformers, and"
            " name its folder as local-dir:FOLDER"
        )
    lines = str(error).splitlines()
    first_line = lines[0] if lines else type(error).__name__
    return first_line.rstrip(".")


def check_classifier(spec: ModelSpec, vit: Any) -> None:
    """Check that timm has weights for the classifier.

    Raises:
        ConfigError: its weights are for another number of classes, so timm initialised it randomly.
    """
    classes = vit.pretrained_cfg.get("num_classes")
    if vit.num_classes not in (0, classes):
        raise ConfigError(
            f"model {spec.name}: timm's weights of {spec.timm} have {classes} classes, the labels"
            f" or num_classes say {vit.num_classes}; name a checkpoint that was fine-tuned for them"
        )


def _patch(spec: ModelSpec, vit: Any) -> tome_core.MergedViT:
    try:
        network = tome_core.patch(vit.eval(), prop_attn=spec.prop_attn)
    except tome_core.UnsupportedModelError as error:
        raise ConfigError(f"model {spec.name} ({spec.timm}) cannot be served: {error}") from error
    if vit.in_chans not in (1, 3):
        raise ConfigError(f"model {spec.name} takes {vit.in_chans} channels; images have 1 or 3")
    return network


def _read_accuracy(spec: ModelSpec) -> dict[str, float]:
    if not spec.profile:
        return {}
    return {row.r: row.accuracy for row in read_profile(spec.profile)}
