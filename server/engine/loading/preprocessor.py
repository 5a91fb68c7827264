"""Hugging Face transformers' ``preprocessor_config.json`` as a data configuration of timm.

Formats: sizes as one number (until version 4.25), ``{"height", "width"}`` or ``{"shortest_edge"}``;
``resample`` as Pillow's number. Defaults are those of transformers' image and video processors.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from server.engine.loading.checkpoints import read_json
from server.errors import ConfigError

log = logging.getLogger("tome.engine")

Size = tuple[int, int]  # height, width

PREPROCESSOR_FILE = "preprocessor_config.json"
_VIDEO_PREPROCESSOR_FILE = "video_preprocessor_config.json"
# Newer versions of transformers save the image processor of CLIP and SigLIP within this file.
_PROCESSOR_FILE = "processor_config.json"

_HALF = (0.5, 0.5, 0.5)
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_PIXEL_SCALE = 1 / 255
_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"height": 224, "width": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "rescale_factor": _PIXEL_SCALE,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_SHORTEST_EDGE: dict[str, Any] = {
    **_DEFAULTS,
    "do_center_crop": True,
    "size": {"shortest_edge": 224},
    "image_mean": _OPENAI_MEAN,
    "image_std": _OPENAI_STD,
}
_VIDEO: dict[str, Any] = {
    **_SHORTEST_EDGE,
    "resample": 2,
    "image_mean": _HALF,
    "image_std": _HALF,
    "offset": False,
}
# By the name of the processor, without "ImageProcessor", "VideoProcessor", "FeatureExtractor",
# "Fast".
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {**_DEFAULTS, "resample": 2},
    "DeiT": {**_DEFAULTS, "do_center_crop": True, "size": {"height": 256, "width": 256}},
    "Beit": _DEFAULTS,
    "Bit": _SHORTEST_EDGE,
    "CLIP": _SHORTEST_EDGE,
    "Siglip": _DEFAULTS,
    "VideoMAE": _VIDEO,
    "Vivit": {
        **_VIDEO,
        "size": {"shortest_edge": 256},
        "rescale_factor": 1 / 127.5,
        "offset": True,
    },
    "VJEPA2": {
        **_VIDEO,
        "crop_size": {"height": 256, "width": 256},
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    },
}
_OF_VIDEO = ("VideoMAE", "Vivit", "VJEPA2")
# Whose size, if it is one number, is that of the shorter side.
_ONE_IS_SHORTEST = ("CLIP", "Bit", *_OF_VIDEO)
_SUFFIX = re.compile(r"(?:ImageProcessor|VideoProcessor|FeatureExtractor)(?:Fast|Pil)?$")
# By Pillow's number (PIL.Image.Resampling).
_INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


def read_preprocessor(folder: Path, processor: str, image_size: Size) -> dict[str, Any]:
    """Return timm's data configuration for the image or video processor of a folder.

    Args:
        folder: of the model.
        processor: name of the processor that models of its type have, such as ``ViT``.
        image_size: of the model, for a processor that does not resize, and if there is none.

    Returns:
        ``input_size`` (height and width), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and
        ``crop_mode``.

    Raises:
        ConfigError: the processor does what the server cannot do; the message names it.
    """
    path, config = read_processor(folder, processor)
    if config is None:
        log.warning(
            "%s has no %s: inputs are prepared as %s does by default",
            folder,
            PREPROCESSOR_FILE,
            f"{processor}{'Video' if processor in _OF_VIDEO else 'Image'}Processor",
        )
        config = _default_sizes(processor, image_size)
    name = _processor_name(path, config) or processor
    given = {key: value for key, value in config.items() if value is not None}
    settings = {**_PROCESSORS[name], **given}
    try:
        if name == "VJEPA2":
            settings["size"] = _size_before_crop(settings["crop_size"])
        geometry = _geometry(path, settings, name, image_size)
        mean, std = _normalisation(settings)
        interpolation = _INTERPOLATIONS[int(settings["resample"])]
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{path} cannot be read: {error!r}") from error
    return {**geometry, "mean": mean, "std": std, "interpolation": interpolation}


def read_processor(folder: Path, processor: str) -> tuple[Path, dict[str, Any] | None]:
    """Return the path and the content of a processor's file; None instead if there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    is_of_video = processor in _OF_VIDEO
    files = (_VIDEO_PREPROCESSOR_FILE, PREPROCESSOR_FILE) if is_of_video else (PREPROCESSOR_FILE,)
    for path in (folder / name for name in files):
        if path.is_file():
            return path, read_json(path)
    processor_path = folder / _PROCESSOR_FILE
    if processor_path.is_file():
        part = "video_processor" if is_of_video else "image_processor"
        inner = read_json(processor_path).get(part)
        if isinstance(inner, dict):
            return processor_path, inner
    return folder / PREPROCESSOR_FILE, None


def _default_sizes(processor: str, image_size: Size) -> dict[str, Any]:
    """Return the sizes of a folder without a processor: those of the model, without a margin.

    Those of a processor of video where its crop is of the model's size.
    """
    height, width = image_size
    size = {"height": height, "width": width}
    if processor not in _OF_VIDEO:
        return {"size": size, "do_center_crop": False}
    if _PROCESSORS[processor]["crop_size"] == size:
        return {}
    return {"size": {"shortest_edge": min(image_size)}, "crop_size": size}


def _processor_name(path: Path, config: dict[str, Any]) -> str | None:
    """Return which of `_PROCESSORS` the file names; None if it names none."""
    fields = ("video_processor_type", "image_processor_type", "feature_extractor_type")
    full_name = next((config[field] for field in fields if config.get(field)), None)
    if full_name is None:
        return None
    name = _SUFFIX.sub("", str(full_name))
    if name not in _PROCESSORS:
        supported = ", ".join(f"{each}ImageProcessor" for each in _PROCESSORS)
        raise ConfigError(f"{path}: {full_name} is not supported; supported: {supported}")
    return name


def _geometry(path: Path, settings: dict[str, Any], name: str, image_size: Size) -> dict[str, Any]:
    """Return ``input_size``, ``crop_pct`` and ``crop_mode``."""
    crops = settings["do_center_crop"]
    if not settings["do_resize"]:
        if crops:
            raise ConfigError(f"{path}: do_center_crop without do_resize is not supported")
        return _exactly(image_size)
    shortest, exact = _parse_size(path, settings["size"], name in _ONE_IS_SHORTEST)
    if not crops:
        if exact is None:
            raise ConfigError(
                f"{path}: size = {settings['size']} without do_center_crop gives images of many"
                " sizes, which is not supported"
            )
        return _exactly(exact)
    _, crop = _parse_size(path, settings["crop_size"], False)
    if crop is None:
        raise ConfigError(f"{path}: crop_size must have height and width")
    if exact is not None:
        return _cropped(path, "squash", exact, crop)
    if crop[0] != crop[1]:
        raise ConfigError(f"{path}: shortest_edge with a crop that is not square is not supported")
    return _cropped(path, "center", (shortest, shortest), crop)


def _size_before_crop(crop: Any) -> dict[str, int]:
    """Return the size of V-JEPA 2's processor, which computes it whatever its file says."""
    side = crop["height"] if isinstance(crop, dict) else crop
    return {"shortest_edge": int(side * 256 / 224)}


def _parse_size(path: Path, size: Any, one_is_shortest: bool) -> tuple[int, Size | None]:
    """Return the length of the shortest side, and both sides unless they follow from it."""
    if isinstance(size, list):
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict):
        side = int(size)
        return side, None if one_is_shortest else (side, side)
    keys = {key for key, value in size.items() if value is not None}
    if keys == {"height", "width"}:
        sides = (int(size["height"]), int(size["width"]))
        return min(sides), sides
    if keys == {"shortest_edge"}:
        return int(size["shortest_edge"]), None
    raise ConfigError(f"{path}: a size with {', '.join(sorted(keys))} is not supported")


def _exactly(size: Size) -> dict[str, Any]:
    return {"input_size": size, "crop_pct": 1.0, "crop_mode": "squash"}


def _cropped(path: Path, mode: str, resized: Size, crop: Size) -> dict[str, Any]:
    # timm rounds crop / crop_pct down: half a pixel more gives this size for certain.
    shares = [cropped / (side + 0.5) for cropped, side in zip(crop, resized, strict=True)]
    if crop == resized:
        shares = [1.0, 1.0]
    sides = [int(cropped / shares[0]) for cropped in crop]
    if tuple(sides) != resized:
        raise ConfigError(
            f"{path}: a crop of another aspect ratio than the resized image is not supported"
        )
    return {"input_size": crop, "crop_pct": shares[0], "crop_mode": mode}


def _normalisation(settings: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for pixels from 0 to 1, whatever scale the processor's are for."""
    scale = 1.0
    if settings["do_rescale"]:
        scale = float(settings["rescale_factor"])
    mean = _as_tuple(settings["image_mean"]) if settings["do_normalize"] else (0.0,)
    std = _as_tuple(settings["image_std"]) if settings["do_normalize"] else (1.0,)
    if settings["do_rescale"] and settings.get("offset"):  # rescaled pixels are lowered by 1
        mean = tuple(value + 1 for value in mean)
    if math.isclose(scale, _PIXEL_SCALE):
        return mean, std
    factor = 255 * scale
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def _as_tuple(values: Any) -> tuple[float, ...]:
    if isinstance(values, int | float):
        values = [values]
    # One value stands for all channels, however many the model has.
    by_channel = tuple(float(value) for value in values)
    return by_channel[:1] if len(set(by_channel)) == 1 else by_channel
