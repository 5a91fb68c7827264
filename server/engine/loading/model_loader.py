"""From a catalog entry to a model ready to run: architecture, weights, labels, transform, all checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch

import tome_core
from server.catalog.entries import LOCAL_FOLDER, ModelSpec
from server.catalog.profiles import read_profile
from server.engine.device.self_check import accelerate
from server.engine.loading.checkpoints import find_weights
from server.engine.loading.weights import load_weights
from server.errors import ConfigError
from server.imaging.transform import Transform
from server.ipc.messages import Accelerations


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, and what is needed to feed it and to name its classes.

    Attributes:
        mean, std: per channel, for pixels on a scale of 0 to 1.
        labels: of the classes; none for a model without a classifier.
        tokens, prefix: at the input of the first block.
        grid: rows and columns of patches.
        accuracy: by the text of a schedule, from the model's profile.
        acceleration: what makes it fast here; see `server.engine.device.self_check`.
    """

    spec: ModelSpec
    network: tome_core.MergedViT
    transform: Transform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    tokens: int
    prefix: int
    depth: int
    grid: tuple[int, int]
    accuracy: dict[str, float]
    acceleration: str


def load_model(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    levels: Sequence[int] = (0, 8, 16),
    allowed: Accelerations = Accelerations(),  # noqa: B008, immutable
) -> LoadedModel:
    """Build, fill, check, patch and optimise the model of ``spec``, and prove on ``levels`` that it still is that.

    Args:
        allowed: what may be tried to be faster.

    Raises:
        ConfigError: anything about ``spec`` cannot work; the message says what.
        UnsafeAcceleration: see `server.engine.device.self_check.accelerate`.
    """
    labels = read_labels(spec.labels) if spec.labels else None
    checkpoint = find_checkpoint(spec)
    vit = create(spec, len(labels) if labels else None, pretrained=checkpoint is None)
    if checkpoint:
        load_weights(vit, checkpoint)
    else:
        check_classifier(spec, vit)
    try:
        network = tome_core.patch(vit.eval(), prop_attn=spec.prop_attn)
    except tome_core.UnsupportedModelError as error:
        raise ConfigError(f"model {spec.name} ({spec.timm}) cannot be served: {error}") from error
    if vit.in_chans not in (1, 3):
        raise ConfigError(f"model {spec.name} takes {vit.in_chans} channels; images have 1 or 3")
    data = resolve_data(spec, vit)
    channels, height, width = data["input_size"]
    proven = accelerate(
        network.to(device), dtype, (channels, height, width), levels, spec.name, allowed
    )
    fast = proven.network
    blank = torch.zeros(1, channels, height, width, device=device)
    return LoadedModel(
        spec=spec,
        network=fast,
        transform=Transform(
            size=(channels, height, width),
            interpolation=data["interpolation"],
            crop_pct=data["crop_pct"],
            crop_mode=data["crop_mode"],
            fill=tuple(
                round(255 * min(max(value, 0), 1)) for value in for_channels(data["mean"], channels)
            ),
        ),
        mean=for_channels(data["mean"], channels),
        std=for_channels(data["std"], channels),
        labels=check_labels(spec, labels or imagenet_labels(vit), vit.num_classes),
        tokens=fast.input_tokens(blank),
        prefix=fast.adapter.prefix,
        depth=len(fast.adapter.blocks),
        grid=fast.patch_grid(blank),
        accuracy=(
            {row.r: row.accuracy for row in read_profile(spec.profile)} if spec.profile else {}
        ),
        acceleration=proven.kind,
    )


def find_checkpoint(spec: ModelSpec) -> Path | None:
    """The file to take weights from: the entry's, or that of its folder; None for timm's own."""
    if spec.checkpoint is None and spec.timm.startswith(LOCAL_FOLDER):
        return find_weights(Path(spec.timm.removeprefix(LOCAL_FOLDER)))
    return spec.checkpoint


def create(spec: ModelSpec, classes: int | None, *, pretrained: bool) -> Any:
    """The timm model, with timm's own weights if ``pretrained``."""
    arguments: dict[str, Any] = dict(spec.model_args)
    for name, value in (
        ("num_classes", classes if spec.num_classes is None else spec.num_classes),
        ("img_size", spec.img_size),
        ("in_chans", spec.in_chans),
    ):
        if value is not None:
            arguments[name] = value
    try:
        return timm.create_model(spec.timm, pretrained=pretrained, **arguments)
    except Exception as error:  # whatever timm or the hub raise, start-up fails with one sentence
        hint = (
            "; without a network, name a checkpoint file (HF_HUB_OFFLINE=1 skips the hub's retries)"
            if pretrained
            else ""
        )
        raise ConfigError(
            f"timm cannot create {spec.timm!r} for model {spec.name}: {_first_line(error)}{hint}"
        ) from error


def check_classifier(spec: ModelSpec, vit: Any) -> None:
    """Raises `ConfigError` if timm left the classifier at random, its weights being for other classes."""
    classes = vit.pretrained_cfg.get("num_classes")
    if vit.num_classes not in (0, classes):
        raise ConfigError(
            f"model {spec.name}: timm's weights of {spec.timm} have {classes} classes, the labels"
            f" or num_classes say {vit.num_classes}; name a checkpoint that was fine-tuned for them"
        )


def resolve_data(spec: ModelSpec, vit: Any) -> dict[str, Any]:
    """The data configuration that timm has for the model, with what the entry overrides.

    Raises:
        ConfigError: mean or std have another number of channels than the model.
    """
    overrides = {
        name: value
        for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")
        if (value := getattr(spec, name)) is not None
    }
    for name in ("mean", "std"):
        check_channels(spec, name, overrides.get(name), vit.in_chans)
    height, width = vit.patch_embed.img_size
    overrides["input_size"] = (vit.in_chans, height, width)
    data: dict[str, Any] = timm.data.resolve_data_config(overrides, model=vit)
    for name in ("mean", "std"):
        check_channels(spec, name, data[name], vit.in_chans)
    if data["interpolation"] not in ("bicubic", "bilinear", "nearest"):
        data["interpolation"] = "bicubic"
    return data


def check_channels(
    spec: ModelSpec, name: str, values: Sequence[float] | None, channels: int
) -> None:
    """Raises `ConfigError` unless there is one value for all channels, or one for each."""
    if values is not None and len(values) not in (1, channels):
        raise ConfigError(
            f"model {spec.name}: {name} has {len(values)} values for {channels} channels; set it"
        )


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """``values`` of `check_channels`, one for each of ``channels``."""
    return tuple(values) * (channels // len(values))


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line; blank lines at the end do not count."""
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").rstrip().split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the labels in {path}: {error}") from error


def imagenet_labels(vit: Any) -> tuple[str, ...] | None:
    """The names that timm has of the classes, where the model has the classes of an ImageNet subset."""
    # What timm infers for a model without classes are those of its configuration.
    subset = timm.data.infer_imagenet_subset(vit) if vit.num_classes else None
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def check_labels(spec: ModelSpec, labels: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    """``labels``, or the class numbers where there are none; as many as there are classes.

    Raises:
        ConfigError: the numbers differ.
    """
    if labels is None:
        return tuple(map(str, range(classes)))
    if len(labels) != classes:
        raise ConfigError(f"model {spec.name}: {len(labels)} labels for {classes} classes")
    return labels


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
