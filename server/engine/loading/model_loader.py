"""From a catalog entry to a model that is ready to run, with all of its parts checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import tome_core
from server.catalog.entries import ModelSpec
from server.catalog.profiles import ProfileRow, read_rule_profile
from server.engine.device.dtype_choice import DtypeChoice, choose_dtype, dtype_name
from server.engine.device.placement import cpu_dtypes
from server.engine.device.self_check import REFERENCE, accelerate
from server.engine.loading.audio_checkpoints import load_audio_model
from server.engine.loading.checkpoints import find_weights_file, read_json
from server.engine.loading.data_config import (
    expand_to_channels,
    make_transform,
    resolve_data_config,
)
from server.engine.loading.front_end import audio_activation, make_audio_transform
from server.engine.loading.label_vectors import (
    LabelVectors,
    activation_of,
    check_width,
    read_label_sets,
)
from server.engine.loading.labels import (
    Labels,
    default_labels,
    own_labels,
    read_labels,
    resolve_labels,
)
from server.engine.loading.levels import resolve_levels
from server.engine.loading.modality import NOUNS, check_fields, expected_modality, modality_of
from server.engine.loading.packages import require_packages
from server.engine.loading.timm_models import check_classifier, create_timm_model
from server.engine.loading.transformers_models import load_transformers_model
from server.engine.loading.video_checkpoints import load_video_model
from server.engine.loading.video_input import make_video_transform
from server.engine.loading.weights import load_weights
from server.errors import ConfigError
from server.ipc.messages import Accelerations
from server.logs import log_step
from server.media.modality import Modality
from server.media.transforms import Transform

log = logging.getLogger("tome.engine")

# Of models of their authors, by modality; images have timm's.
_LOADERS = {Modality.AUDIO: load_audio_model, Modality.VIDEO: load_video_model}


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with what is needed to prepare its input and to name its classes.

    Attributes:
        mean, std: per channel, for pixels on a scale of 0 to 1; empty for a model of sound, whose
            inputs are normalised.
        activation: computes the scores from the logits.
        labels: of the classes; empty for a model without a classifier. Where there are label sets,
            those of the first.
        tokens, prefix: number of all tokens and of prefix tokens at the input of the first block.
        depth: number of blocks.
        grid: rows and columns of patches.
        levels: see `server.engine.loading.levels`.
        profile: the rows of the model's profile, by the text of their schedule; empty without one.
        acceleration: of the network; see `server.engine.device.self_check`.
        dtype_speedup: see `server.ipc.messages.ModelInfo`.
        label_sets: for zero-shot classification, by name, the default first; the logits of the
            network are then the embedding that is compared with them.
    """

    spec: ModelSpec
    network: tome_core.MergedViT
    transform: Transform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    activation: str
    labels: tuple[str, ...]
    tokens: int
    prefix: int
    depth: int
    grid: tuple[int, int]
    levels: tuple[int, ...]
    profile: dict[str, ProfileRow]
    acceleration: str
    dtype_speedup: float | None = None
    label_sets: Mapping[str, LabelVectors] = field(default_factory=dict)


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
        levels: of models of images whose entry has none (`TOME_LEVELS`).
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
    label_sets = read_label_sets(spec)
    labels = read_labels(spec.labels) if spec.labels else None
    vit = create_with_weights(spec, labels)
    check_width(spec, label_sets, vit.num_classes or vit.num_features)
    plain = _patch(spec, vit)
    model_input = _resolve_input(spec, vit)
    transform = model_input.transform
    blank = torch.zeros(1, *transform.size)
    tokens = plain.input_tokens(blank)
    prefix = plain.adapter.prefix
    levels = resolve_levels(spec, transform.modality, levels, tokens, prefix)
    if dtype is None:
        with log_step(log, f"{spec.name}: timing the dtypes of the processor"):
            choice = choose_dtype(plain, cpu_dtypes(), transform.size, levels, spec.name)
    else:
        choice = DtypeChoice(dtype)
    target = f"{device} in {dtype_name(choice.dtype)}"
    with log_step(log, f"{spec.name}: optimising for {target}, and the self check"):
        checked = accelerate(
            plain.to(device), choice.dtype, transform.size, levels, spec.name, allowed
        )
    network = checked.network
    return LoadedModel(
        spec=spec,
        network=network,
        transform=transform,
        mean=model_input.mean,
        std=model_input.std,
        activation=activation_of(spec, label_sets) if label_sets else model_input.activation,
        labels=_resolve_labels(spec, labels or model_input.labels, vit, label_sets),
        tokens=tokens,
        prefix=prefix,
        depth=len(network.adapter.blocks),
        grid=network.patch_grid(blank),
        levels=levels,
        profile=_read_profile(spec),
        acceleration=checked.acceleration,
        dtype_speedup=choice.speedup,
        label_sets=label_sets,
    )


def _resolve_labels(
    spec: ModelSpec, labels: Labels | None, vit: Any, label_sets: Mapping[str, LabelVectors]
) -> Labels:
    for default in label_sets.values():
        return default.labels
    return resolve_labels(spec, labels, vit.num_classes)


def _read_profile(spec: ModelSpec) -> dict[str, ProfileRow]:
    if spec.profile is None:
        return {}
    return read_rule_profile(spec.profile, spec.merging, spec.prop_attn)


class _ModelInput(NamedTuple):
    """What the modality of a model decides: see `LoadedModel`; ``labels`` are the default."""

    transform: Transform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    activation: str
    labels: Labels | None


def _resolve_input(spec: ModelSpec, vit: Any) -> _ModelInput:
    modality = modality_of(spec, vit)
    check_fields(spec, modality)
    require_packages(spec, modality)
    if modality is Modality.AUDIO:
        return _resolve_sound(spec, vit)
    data = resolve_data_config(spec, vit)
    channels = data["input_size"][0]
    is_video = modality is Modality.VIDEO
    return _ModelInput(
        transform=make_video_transform(spec, vit, data) if is_video else make_transform(data),
        mean=expand_to_channels(data["mean"], channels),
        std=expand_to_channels(data["std"], channels),
        activation=spec.activation,
        labels=own_labels(vit) if is_video else default_labels(vit),
    )


def _resolve_sound(spec: ModelSpec, vit: Any) -> _ModelInput:
    has_activation = "activation" in spec.model_fields_set
    return _ModelInput(
        transform=make_audio_transform(spec, vit),
        mean=(),
        std=(),
        activation=spec.activation if has_activation else audio_activation(vit),
        labels=own_labels(vit),
    )


def create_with_weights(spec: ModelSpec, labels: Sequence[str] | None) -> Any:
    """Return the model of timm, as timm has it, with the weights of the entry.

    Args:
        labels: those that the entry names; None if it names none.

    Raises:
        ConfigError: it cannot be created, or there are no such weights.
    """
    path = find_checkpoint(spec)
    if spec.folder is not None:
        config = read_json(spec.folder / "config.json")
        if path is not None and is_of_transformers(spec.folder, config):
            with log_step(log, f"{spec.name}: loading {spec.folder}, a model of transformers"):
                return load_transformers_model(spec, spec.folder, path, config)
    classes = len(labels) if labels else None
    modality = expected_modality(spec)
    if modality in _LOADERS:
        return _load_own_network(spec, modality, path, classes)
    source = path or "timm's weights, from the hub or its cache"
    with log_step(log, f"{spec.name}: loading {spec.timm} with {source}"):
        vit = create_timm_model(spec, classes, pretrained=path is None)
        if path:
            load_weights(vit, path, spec.prefix)
    if not path:
        check_classifier(spec, vit)
    return vit


def _load_own_network(
    spec: ModelSpec, modality: Modality, path: Path | None, classes: int | None
) -> Any:
    """Return a model of a modality that timm has no weights for."""
    if path is None:
        raise ConfigError(
            f"model {spec.name} takes {NOUNS[modality]}, and timm has no weights for that: name a"
            ' checkpoint, or a folder as timm = "local-dir:FOLDER"'
        )
    with log_step(log, f"{spec.name}: loading {spec.timm} with {path}"):
        return _LOADERS[modality](spec, path, classes)


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


def _patch(spec: ModelSpec, vit: Any) -> tome_core.MergedViT:
    try:
        network = tome_core.patch(vit.eval(), prop_attn=spec.prop_attn, merging=spec.merging)
    except tome_core.UnsupportedModelError as error:
        raise ConfigError(f"model {spec.name} ({spec.timm}) cannot be served: {error}") from error
    if vit.in_chans not in (1, 3):
        raise ConfigError(f"model {spec.name} takes {vit.in_chans} channels; images have 1 or 3")
    return network
