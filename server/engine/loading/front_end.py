"""The front end of models of sound: what the authors, transformers or the entry say it is."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.catalog.entries import ModelSpec
from server.engine.loading.checkpoints import read_json
from server.engine.loading.preprocessor import PREPROCESSOR_FILE
from server.errors import ConfigError
from server.media.transforms import AudioTransform
from tome_core.networks.spectrogram_vit import SpectrogramViT

log = logging.getLogger("tome.engine")

MEL_BINS = 128
SAMPLE_RATE = 16_000
# Of log-mel values in AudioSet.
AUDIOSET_MEAN = -4.2677393
AUDIOSET_STD = 4.5689974
# (x - mean) / (2 * std) is x itself.
_IDENTITY_MEAN = 0.0
_IDENTITY_STD = 0.5
_EXTRACTOR = "ASTFeatureExtractor"


@dataclass(frozen=True)
class FrontEnd:
    """What differs between the front ends of models; see `AudioTransform`."""

    mean: float = AUDIOSET_MEAN
    std: float = AUDIOSET_STD
    subtract_mean: bool = True


def read_feature_extractor(folder: Path, frames: int, mel_bins: int) -> FrontEnd:
    """Return the front end that ``preprocessor_config.json`` of transformers describes.

    Args:
        folder: of the model.
        frames, mel_bins: of one window, as ``config.json`` says.

    Raises:
        ConfigError: it is another front end than that of AST; the message names what differs.
    """
    config = {"num_mel_bins": mel_bins}
    _require(folder / "config.json", config, "num_mel_bins", MEL_BINS)
    path = folder / PREPROCESSOR_FILE
    if not path.is_file():
        log.warning(
            "%s has no %s: sound is prepared as %s does by default",
            folder,
            PREPROCESSOR_FILE,
            _EXTRACTOR,
        )
        return FrontEnd(subtract_mean=False)
    settings = read_json(path)
    name = settings.get("feature_extractor_type", _EXTRACTOR)
    if name != _EXTRACTOR:
        raise ConfigError(f"{path}: {name} is not supported; supported: {_EXTRACTOR}")
    _require(path, settings, "sampling_rate", SAMPLE_RATE)
    _require(path, settings, "num_mel_bins", MEL_BINS)
    _require(path, settings, "feature_size", 1)
    _require(path, settings, "max_length", frames, "the max_length of config.json")
    if not settings.get("do_normalize", True):
        return FrontEnd(_IDENTITY_MEAN, _IDENTITY_STD, subtract_mean=False)
    mean = _number(path, settings, "mean", AUDIOSET_MEAN)
    std = _number(path, settings, "std", AUDIOSET_STD)
    if std <= 0:
        raise ConfigError(f"{path}: std = {std} must be greater than 0")
    return FrontEnd(mean, std, subtract_mean=False)


def _require(
    path: Path,
    settings: Mapping[str, Any],
    name: str,
    expected: int,
    what: str = "what the server computes",
) -> None:
    value = settings.get(name, expected)
    if value != expected:
        raise ConfigError(f"{path}: {name} = {value!r} is not {expected}, {what}")


def _number(path: Path, settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name, default)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{path}: {name} = {value!r} is no number")
    return float(value)


def is_time_last(vit: Any) -> bool:
    """Return whether a model takes ``(1, mel, frames)``, as AST, and not ``(1, frames, mel)``."""
    return type(vit) is SpectrogramViT


def check_spectrogram(spec: ModelSpec, vit: Any) -> None:
    """Raise `ConfigError` unless a model takes spectrograms of one channel and `MEL_BINS`."""
    height, width = vit.patch_embed.img_size
    mel_bins = height if is_time_last(vit) else width
    if vit.in_chans != 1 or mel_bins != MEL_BINS:
        layout = f"(1, {MEL_BINS}, frames)" if is_time_last(vit) else f"(1, frames, {MEL_BINS})"
        raise ConfigError(
            f"model {spec.name}: its input is {(vit.in_chans, height, width)}, that of a model of"
            f" sound is {layout}; set img_size"
        )
    if vit.patch_embed.num_patches < 1:
        raise ConfigError(
            f"model {spec.name}: no patch of {vit.patch_embed.patch_size} fits into its input of"
            f" {(height, width)}; set a longer img_size"
        )


def make_audio_transform(spec: ModelSpec, vit: Any) -> AudioTransform:
    """Return the transform of a model of sound, which passed `check_spectrogram`.

    Its ``pretrained_cfg`` has the `FrontEnd` under ``front_end``; the fields of the entry have
    precedence.

    Raises:
        ConfigError: mean or std of the entry has several values.
    """
    front_end: FrontEnd = vit.pretrained_cfg.get("front_end", FrontEnd())
    height, width = vit.patch_embed.img_size
    time_last = is_time_last(vit)
    subtract_mean = front_end.subtract_mean if spec.subtract_mean is None else spec.subtract_mean
    return AudioTransform(
        frames=width if time_last else height,
        mean=_one_value(spec, "mean", front_end.mean),
        std=_one_value(spec, "std", front_end.std),
        time_last=time_last,
        subtract_mean=subtract_mean,
        mel_bins=MEL_BINS,
        sample_rate=SAMPLE_RATE,
    )


def _one_value(spec: ModelSpec, name: str, default: float) -> float:
    values = getattr(spec, name)
    if values is None:
        return default
    if len(values) != 1:
        raise ConfigError(
            f"model {spec.name}: {name} has {len(values)} values; a spectrogram has one channel"
        )
    return float(values[0])


def audio_activation(vit: Any) -> str:
    """Return the activation of a model of sound whose entry has none.

    A sound has several labels, as in AudioSet, unless transformers' ``problem_type`` denies it.
    """
    if vit.pretrained_cfg.get("problem_type") == "single_label_classification":
        return "softmax"
    return "sigmoid"
