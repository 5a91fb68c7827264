"""How images are prepared for a model: timm's data configuration, with the entry's fields."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import timm.data

from server.catalog.entries import INTERPOLATIONS, ModelSpec
from server.errors import ConfigError
from server.media.transforms import ImageTransform

log = logging.getLogger("tome.engine")

# The fields of timm's data configuration that an entry may override.
DATA_FIELDS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
# Pixels are from 0 to 1, where mean and std are at most 1 and 0.5; models of other signals than
# light, as AudioMAE, have a std of 4.6. Larger ones are meant for pixels from 0 to 255.
_LARGEST_MEAN = 2
_LARGEST_STD = 10


def resolve_data_config(spec: ModelSpec, vit: Any) -> dict[str, Any]:
    """Return timm's data configuration of the model, with the fields that the entry overrides.

    Raises:
        ConfigError: mean or std do not match the model's channels, a std is 0, or the server has
            no such interpolation.
    """
    overrides: dict[str, Any] = {}
    for name in DATA_FIELDS:
        value = getattr(spec, name)
        if value is not None:
            overrides[name] = value
    for name in ("mean", "std"):
        check_channels(spec, name, overrides.get(name), vit.in_chans)
    height, width = vit.patch_embed.img_size
    overrides["input_size"] = (vit.in_chans, height, width)
    data: dict[str, Any] = timm.data.resolve_data_config(overrides, model=vit)
    for name in ("mean", "std"):
        check_channels(spec, name, data[name], vit.in_chans)
    _check_scale(spec, data["mean"], data["std"])
    if data["interpolation"] not in INTERPOLATIONS:
        raise ConfigError(
            f"model {spec.name}: there is no interpolation {data['interpolation']!r}; set it to one"
            f" of {', '.join(INTERPOLATIONS)}"
        )
    return data


def check_channels(
    spec: ModelSpec,
    name: str,
    values: Sequence[float] | None,
    channels: int,
) -> None:
    """Check that ``values`` has one value for all channels, or one for each.

    Raises:
        ConfigError: it has another number of values.
    """
    if values is not None and len(values) not in (1, channels):
        raise ConfigError(
            f"model {spec.name}: {name} has {len(values)} values for {channels} channels; set it"
        )


def _check_scale(spec: ModelSpec, mean: Sequence[float], std: Sequence[float]) -> None:
    """Warn of values for pixels from 0 to 255. Raises `ConfigError` if pixels are divided by 0."""
    if not all(value > 0 for value in std):
        raise ConfigError(
            f"model {spec.name}: std = {list(std)} must be greater than 0: pixels are divided by it"
        )
    if max(mean) > _LARGEST_MEAN or max(std) > _LARGEST_STD:
        log.warning(
            "model %s: mean = %s and std = %s look as if pixels were from 0 to 255; they are from"
            " 0 to 1 here: divide both by 255",
            spec.name,
            list(mean),
            list(std),
        )


def expand_to_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value for each of ``channels``, from values that passed `check_channels`."""
    return tuple(values) * (channels // len(values))


def make_transform(data: dict[str, Any]) -> ImageTransform:
    """Return the transform of timm's data configuration."""
    channels = data["input_size"][0]
    mean = expand_to_channels(data["mean"], channels)
    return ImageTransform(
        size=data["input_size"],
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
        fill=tuple(round(255 * min(max(value, 0), 1)) for value in mean),
    )
