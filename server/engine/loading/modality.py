"""Which modality a model has: what its entry, its architecture or its folder says."""

from __future__ import annotations

from typing import Any

from server.catalog.entries import ModelSpec
from server.engine.loading.checkpoints import read_json
from server.errors import ConfigError
from server.media.modality import Modality
from tome_core.networks.architectures import AST_ARCHITECTURES
from tome_core.networks.spectrogram_vit import SpectrogramViT


def timm_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the ``config.json`` of a folder of timm; empty for any other entry.

    Raises:
        ConfigError: it cannot be read.
    """
    if spec.folder is None:
        return {}
    config = read_json(spec.folder / "config.json")
    return config if "architecture" in config else {}


def is_ast(spec: ModelSpec) -> bool:
    """Return whether timm's architecture is one of AST. Raises as `timm_config`."""
    architecture = timm_config(spec).get("architecture", spec.timm)
    return architecture in AST_ARCHITECTURES


def takes_sound(spec: ModelSpec) -> bool:
    """Return whether the entry or timm's architecture is one of sound. Raises as `timm_config`."""
    return spec.modality is Modality.AUDIO or is_ast(spec)


def modality_of(spec: ModelSpec, vit: Any) -> Modality:
    """Return the modality of the model ``vit`` of an entry.

    Raises:
        ConfigError: the entry says that it takes images, and it does not.
    """
    is_of_sound = spec.modality is Modality.AUDIO or type(vit) is SpectrogramViT
    if not is_of_sound:
        return Modality.IMAGE
    if spec.modality is Modality.IMAGE and "modality" in spec.model_fields_set:
        raise ConfigError(f'model {spec.name} takes sound: set modality = "audio", or leave it out')
    return Modality.AUDIO
