"""Which modality a model has: what its entry, its architecture or its folder says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.catalog.entries import ModelSpec
from server.engine.loading.checkpoints import read_json
from server.errors import ConfigError
from server.media.modality import Modality
from tome_core.networks.audio_architectures import AST_ARCHITECTURES
from tome_core.networks.spectrogram_vit import SpectrogramViT
from tome_core.networks.tubelets import TubeletEmbed
from tome_core.networks.video_architectures import VIDEO_ARCHITECTURES
from tome_core.networks.vjepa2_architectures import VJEPA2_ARCHITECTURES

# What a model takes, in messages.
NOUNS = {Modality.IMAGE: "images", Modality.AUDIO: "sound", Modality.VIDEO: "video"}
# The fields of an entry that mean nothing for some modalities, and those that they are for.
_FIELDS = {
    "interpolation": (Modality.IMAGE, Modality.VIDEO),
    "crop_pct": (Modality.IMAGE, Modality.VIDEO),
    "crop_mode": (Modality.IMAGE,),
    "subtract_mean": (Modality.AUDIO,),
    "sampling": (Modality.VIDEO,),
    "stride": (Modality.VIDEO,),
    "clips": (Modality.VIDEO,),
    "crops": (Modality.VIDEO,),
}


def timm_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the ``config.json`` of a folder of timm; empty for any other entry.

    Raises:
        ConfigError: it cannot be read.
    """
    if spec.folder is None:
        return {}
    config = read_json(spec.folder / "config.json")
    return config if "architecture" in config else {}


def arguments_of_folder(spec: ModelSpec) -> dict[str, Any]:
    """Return the ``model_args`` of a folder of timm. Raises as `timm_config`."""
    arguments = timm_config(spec).get("model_args")
    return dict(arguments) if isinstance(arguments, Mapping) else {}


def _architecture(spec: ModelSpec) -> str:
    """Return the name in timm of the entry's architecture. Raises as `timm_config`."""
    return str(timm_config(spec).get("architecture", spec.timm))


def is_ast(spec: ModelSpec) -> bool:
    """Return whether timm's architecture is one of AST. Raises as `timm_config`."""
    return _architecture(spec) in AST_ARCHITECTURES


def is_vjepa2(spec: ModelSpec) -> bool:
    """Return whether timm's architecture is one of V-JEPA 2. Raises as `timm_config`."""
    return _architecture(spec) in VJEPA2_ARCHITECTURES


def takes_clips(spec: ModelSpec) -> bool:
    """Return whether timm's architecture is one of video. Raises as `timm_config`."""
    return _architecture(spec) in VIDEO_ARCHITECTURES or is_vjepa2(spec)


def expected_modality(spec: ModelSpec) -> Modality:
    """Return what the entry or timm's architecture takes, before the model is created.

    Raises as `timm_config`.
    """
    if spec.modality is not Modality.IMAGE:
        return spec.modality
    if is_ast(spec):
        return Modality.AUDIO
    if takes_clips(spec):
        return Modality.VIDEO
    return Modality.IMAGE


def modality_of(spec: ModelSpec, vit: Any) -> Modality:
    """Return the modality of the model ``vit`` of an entry.

    Raises:
        ConfigError: the entry says that it takes something else.
    """
    found = _modality_of_network(vit)
    if "modality" not in spec.model_fields_set or spec.modality is found:
        return found
    if spec.modality is Modality.AUDIO and found is Modality.IMAGE:
        return Modality.AUDIO  # a spectrogram is a picture to AudioMAE, whose network is timm's ViT
    raise ConfigError(
        f'model {spec.name} takes {NOUNS[found]}: set modality = "{found}", or leave it out'
    )


def _modality_of_network(vit: Any) -> Modality:
    if type(vit) is SpectrogramViT:
        return Modality.AUDIO
    if isinstance(getattr(vit, "patch_embed", None), TubeletEmbed):
        return Modality.VIDEO
    return Modality.IMAGE


def check_fields(spec: ModelSpec, modality: Modality) -> None:
    """Raise `ConfigError` if an entry of ``modality`` has a field that is for another one."""
    for name, modalities in _FIELDS.items():
        if modality not in modalities and getattr(spec, name) is not None:
            raise ConfigError(
                f"model {spec.name} takes {NOUNS[modality]}: {name} is a field of"
                f" {NOUNS[modalities[0]]}"
            )
