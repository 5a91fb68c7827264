"""Models of Hugging Face transformers, built as timm's from their ``config.json``.

Supported are ViT, DeiT, BEiT, DINOv2 (with registers), the vision towers of SigLIP and CLIP, AST,
VideoMAE, ViViT and V-JEPA 2: with the classifier of ``*ForImageClassification``,
``*ForVideoClassification`` or ``ASTForAudioClassification``, or without one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from timm.layers import LayerNorm, resample_abs_pos_embed

from server.catalog.entries import ModelSpec
from server.engine.loading.checkpoints import read_checkpoint
from server.engine.loading.front_end import check_spectrogram, read_feature_extractor
from server.engine.loading.labels import in_order_of_index
from server.engine.loading.preprocessor import read_preprocessor, read_processor
from server.engine.loading.time_positions import fit_in_time
from server.engine.loading.transformers_families import (
    ACTIVATIONS,
    FAMILIES,
    Config,
    Family,
    StateDict,
)
from server.engine.loading.transformers_names import (
    PROJECTION,
    is_transformers,
    names_in_file,
    transformers_to_timm,
)
from server.engine.loading.video_input import ClipFormat
from server.engine.loading.video_refusals import REFUSED_TYPES
from server.engine.loading.weights import check_state_dict
from server.errors import ConfigError
from server.media.modality import Modality

log = logging.getLogger("tome.engine")

Size = tuple[int, int]  # height, width

# Fields of ``config.json``, of which models of images and sound lack the last.
_COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "num_frames",
)


def load_transformers_model(spec: ModelSpec, folder: Path, path: Path, config: Config) -> Any:
    """Return the model in a folder of transformers as a model of timm, with its weights.

    Its ``pretrained_cfg`` holds what ``preprocessor_config.json`` says, and the labels.

    Args:
        spec: the entry. Its ``img_size``, ``num_classes`` and ``model_args`` have precedence.
        folder: of the model.
        path: of the weights file.
        config: the content of ``config.json``.

    Raises:
        ConfigError: the model is not supported, or the files do not fit each other.
    """
    config_path = folder / "config.json"
    family, settings = _settings(config, config_path)
    _check_modality(spec, family, config_path)
    state_dict = read_checkpoint(path, spec.prefix)
    if not is_transformers(state_dict):
        raise ConfigError(
            f"{path} holds no weights of such a model of transformers: it has"
            f" {next(iter(state_dict))}"
        )
    tensors = transformers_to_timm(state_dict)
    if spec.text is not None:
        _keep_projection(spec, family, state_dict, tensors, path)
    try:
        vit = _BUILDERS[family.modality](spec, folder, family, settings, tensors)
    except ConfigError:
        raise
    except Exception as error:  # timm raises many types
        raise ConfigError(f"{config_path}: timm cannot create such a model: {error}") from error
    names = names_in_file(state_dict)
    _check_parts(vit, tensors, path, names, config)
    check_state_dict(vit, tensors, path, names)
    vit.load_state_dict(tensors)
    label_names = config.get("id2label")
    if isinstance(label_names, Mapping):
        label_names = in_order_of_index(label_names, f"{config_path}: the keys of id2label")
    vit.pretrained_cfg["label_names"] = label_names
    vit.pretrained_cfg["problem_type"] = config.get("problem_type")
    if family.modality is not Modality.AUDIO:
        _check_activation(spec, config)
    return vit


def _keep_projection(
    spec: ModelSpec, family: Family, state_dict: StateDict, tensors: StateDict, path: Path
) -> None:
    """Add to ``tensors`` what leads to the embedding that is compared with labels.

    Raises:
        ConfigError: there is a classifier, or CLIP's projection is missing.
    """
    if "head.weight" in tensors:
        raise ConfigError(
            f"model {spec.name}: text needs an embedding, and {path} is of a model with a"
            " classifier: leave text out, or name the model that the text tower belongs to"
        )
    if not family.has_projection:
        return
    if PROJECTION not in state_dict:
        raise ConfigError(
            f"model {spec.name}: text needs {PROJECTION}, which {path} lacks: save CLIPModel or"
            " CLIPVisionModelWithProjection"
        )
    tensors[PROJECTION] = state_dict[PROJECTION]


def _check_modality(spec: ModelSpec, family: Family, path: Path) -> None:
    """Raise `ConfigError` if the entry says another modality than the folder."""
    is_said = "modality" in spec.model_fields_set
    if is_said and spec.modality is not family.modality:
        raise ConfigError(
            f'model {spec.name}: modality = "{spec.modality}", but {path} describes a model of'
            f' modality "{family.modality}": leave it out'
        )


def _check_activation(spec: ModelSpec, config: Config) -> None:
    """Warn of the default activation for a model whose classes do not exclude each other."""
    is_multi_label = config.get("problem_type") == "multi_label_classification"
    if is_multi_label and "activation" not in spec.model_fields_set:
        log.warning(
            "model %s: config.json says that an input may have several labels; the scores are a"
            ' softmax: set activation = "sigmoid" for one probability per label',
            spec.name,
        )


def _check_parts(
    vit: Any,
    tensors: StateDict,
    path: Path,
    names: Mapping[str, str],
    config: Config,
) -> None:
    """Check that the file has the parts that ``config.json`` describes, and no other.

    Raises:
        ConfigError: names the first part.
    """
    expected = vit.state_dict()
    architecture = ", ".join(config.get("architectures") or ["not named"])
    for key in tensors:
        if key not in expected and not key.startswith("head"):
            raise ConfigError(
                f"{path} has {names.get(key, key)}, which is no part of a supported model: models"
                " without a head, *ForImageClassification, *ForVideoClassification and"
                f" ASTForAudioClassification (this one is {architecture})"
            )
    for key in expected:
        if key not in tensors and not key.startswith("head"):
            raise ConfigError(
                f"{path} lacks {key} (in timm's names), which config.json describes"
                f" (architecture: {architecture}); are the two files of one model?"
            )


def _settings(config: Config, path: Path) -> tuple[Family, dict[str, Any]]:
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if model_type in REFUSED_TYPES:
        raise ConfigError(
            f"{path} describes a model of type {model_type!r}, which is not supported:"
            f" {REFUSED_TYPES[model_type]}"
        )
    if family is None:
        raise ConfigError(
            f"{path} describes a model of type {model_type!r} of transformers, which is not"
            f" supported; supported: {', '.join(FAMILIES)}"
        )
    own = config
    if model_type in ("clip", "siglip"):
        own = config.get("vision_config") or {}
    renamed = {family.renamed.get(name, name): value for name, value in own.items()}
    settings = {**family.defaults, **renamed}
    for name in _COUNTS:
        if name not in settings:
            continue
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise ConfigError(f"{path}: {name} = {settings[name]!r} is no positive number")
    width = settings["hidden_size"]
    heads = settings["num_attention_heads"]
    head_dim = settings.get("head_dim") or width // heads
    if head_dim * heads != width:
        raise ConfigError(
            f"{path}: {heads} heads of {head_dim} for a width of {width} are not supported"
        )
    if settings["hidden_act"] not in ACTIVATIONS:
        raise ConfigError(
            f"{path}: hidden_act = {settings['hidden_act']!r} is not supported; supported:"
            f" {', '.join(ACTIVATIONS)}"
        )
    return family, settings


def _build_of_images(
    spec: ModelSpec, folder: Path, family: Family, settings: dict[str, Any], tensors: StateDict
) -> Any:
    """Create the model, and resize the positions among ``tensors`` to its image."""
    image_size = _pair(settings["image_size"])
    data = read_preprocessor(folder, family.processor, image_size)
    input_size = _pair(spec.img_size or data["input_size"])
    arguments = _arguments(spec, settings, tensors, input_size)
    vit: Any = family.build(settings, tensors, arguments)
    _resize_positions(vit, tensors, image_size, family.antialias)
    channels = arguments["in_chans"]
    vit.pretrained_cfg = {**data, "input_size": (channels, *input_size)}
    return vit


def _build_of_sound(
    spec: ModelSpec, folder: Path, family: Family, settings: dict[str, Any], tensors: StateDict
) -> Any:
    """Create the model, and fit the positions among ``tensors`` to its window."""
    bins = settings["num_mel_bins"]
    frames = settings["max_length"]
    front_end = read_feature_extractor(folder, frames, bins)
    input_size = _pair(spec.img_size or (bins, frames))
    arguments = _arguments(spec, settings, tensors, input_size)
    vit: Any = family.build(settings, tensors, arguments)
    check_spectrogram(spec, vit)
    if "pos_embed" in tensors:
        tensors["pos_embed"] = fit_in_time(
            tensors["pos_embed"],
            vit.patch_embed.dynamic_feat_size((bins, frames)),
            vit.patch_embed.grid_size,
            vit.num_prefix_tokens,
            time_last=True,
        )
    vit.pretrained_cfg = {"front_end": front_end}
    return vit


def _build_of_video(
    spec: ModelSpec, folder: Path, family: Family, settings: dict[str, Any], tensors: StateDict
) -> Any:
    """Create the model of the clips that ``config.json`` describes.

    Raises:
        ConfigError: the video processor prepares frames of another size, or as the server cannot.
    """
    image_size = _pair(settings["image_size"])
    data = read_preprocessor(folder, family.processor, image_size)
    if data.pop("crop_mode") != "center" or data.pop("input_size") != image_size:
        raise ConfigError(
            f"{folder}: its processor must resize the shorter side of frames and crop them to"
            f" {image_size[0]} x {image_size[1]}, the image_size of config.json; others are not"
            " supported"
        )
    frames = settings["num_frames"]
    tubelet = settings["tubelet_size"]
    if not isinstance(tubelet, int):
        tubelet, *settings["patch_size"] = tubelet
    arguments = {
        "frames": frames,
        "tubelet": tubelet,
        **_arguments(spec, settings, tensors, _pair(spec.img_size or image_size)),
    }
    try:
        vit: Any = family.build(settings, tensors, arguments)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error
    clips = ClipFormat(sampling=_sampling(folder, family, frames), stride=family.stride)
    vit.pretrained_cfg = {**data, "clips": clips}
    return vit


def _sampling(folder: Path, family: Family, frames: int) -> Literal["stride", "uniform"]:
    """Return how a video processor samples frames; ``stride`` where it does not.

    Raises:
        ConfigError: it takes frames at other times than the server can.
    """
    path, settings = read_processor(folder, family.processor)
    if settings is None or not settings.get("do_sample_frames"):
        return "stride"
    if settings.get("num_frames") != frames or settings.get("fps"):
        raise ConfigError(
            f"{path}: do_sample_frames with num_frames = {settings.get('num_frames')} and fps ="
            f" {settings.get('fps')} is not supported; supported: {frames} frames of the whole"
            " video"
        )
    return "uniform"


_BUILDERS = {
    Modality.IMAGE: _build_of_images,
    Modality.AUDIO: _build_of_sound,
    Modality.VIDEO: _build_of_video,
}


def _arguments(
    spec: ModelSpec, settings: dict[str, Any], tensors: StateDict, input_size: Size
) -> dict[str, Any]:
    """Return the arguments that all models of timm have."""
    head = tensors.get("head.weight")
    arguments = {
        "img_size": input_size,
        "patch_size": _pair(settings["patch_size"]),
        "in_chans": spec.in_chans or settings["num_channels"],
        "num_classes": 0 if head is None else len(head),
        "embed_dim": settings["hidden_size"],
        "depth": settings["num_hidden_layers"],
        "num_heads": settings["num_attention_heads"],
        "mlp_ratio": _mlp_ratio(settings),
        "qkv_bias": settings["qkv_bias"],
        "norm_layer": partial(LayerNorm, eps=settings["layer_norm_eps"]),
        "act_layer": ACTIVATIONS[settings["hidden_act"]],
        **spec.model_args,
    }
    if spec.num_classes is not None:
        arguments["num_classes"] = spec.num_classes
    return arguments


def _pair(size: Any) -> Size:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _mlp_ratio(settings: Mapping[str, Any]) -> float:
    """Return the ratio from which timm computes the width of the first layer of an MLP."""
    width = settings["hidden_size"]
    hidden = settings["intermediate_size"]
    if "mlp_ratio" in settings:
        hidden = int(width * settings["mlp_ratio"])
    if settings.get("use_swiglu_ffn"):
        of_one_branch = (int(hidden * 2 / 3) + 7) // 8 * 8
        hidden = 2 * of_one_branch
    # timm rounds down: half a column more gives this width for certain.
    return (hidden + 0.5) / width


def _resize_positions(vit: Any, tensors: StateDict, image_size: Size, antialias: bool) -> None:
    """Resize the positions from the model's image to the one that it is served, if they differ.

    Raises:
        ConfigError: the positions are relative.
    """
    patch_height, patch_width = vit.patch_embed.patch_size
    old_grid = (image_size[0] // patch_height, image_size[1] // patch_width)
    new_grid = vit.patch_embed.grid_size
    if old_grid == new_grid:
        return
    if any("relative_position_bias_table" in key for key in tensors):
        raise ConfigError(
            f"relative positions of {old_grid[0]} x {old_grid[1]} patches cannot be resized to"
            f" {new_grid[0]} x {new_grid[1]}; set img_size = {list(image_size)}"
        )
    if "pos_embed" in tensors:
        prefix = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
        tensors["pos_embed"] = resample_abs_pos_embed(
            tensors["pos_embed"],
            new_size=new_grid,
            old_size=old_grid,
            num_prefix_tokens=prefix,
            antialias=antialias,
        )
