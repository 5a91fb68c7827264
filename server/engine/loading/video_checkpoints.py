"""Models of video from files of their authors: VideoMAE, VideoMAEv2 and MAE-ST, and timm's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from server.catalog.entries import ModelSpec
from server.engine.loading.checkpoints import read_checkpoint
from server.engine.loading.modality import (
    arguments_of_folder,
    is_vjepa2,
    takes_clips,
    timm_config,
)
from server.engine.loading.sinusoids import sinusoid_positions
from server.engine.loading.timm_models import count_classes, create_timm_model
from server.engine.loading.transformers_names import require_other
from server.engine.loading.video_geometry import PATCHES, Geometry, find_geometry
from server.engine.loading.video_names import (
    Source,
    find_source,
    names_in_file,
    video_to_timm,
)
from server.engine.loading.video_refusals import check_attention
from server.engine.loading.vjepa2_checkpoints import load_vjepa2_model
from server.engine.loading.weights import check_state_dict
from server.errors import ConfigError
from tome_core.networks.video_architectures import VIDEO_ARCHITECTURES
from tome_core.networks.vjepa2_architectures import VJEPA2_ARCHITECTURES

StateDict = dict[str, Tensor]

# How the authors prepare frames, where that is not timm's configuration of the architecture.
_BILINEAR = {"interpolation": "bilinear"}
_PREPARATION: dict[Source, dict[str, Any]] = {
    Source.TIMM: _BILINEAR,
    Source.VIDEOMAE: {**_BILINEAR, "crop_pct": 1.0},
    Source.MAE_ST: {**_BILINEAR, "mean": (0.45,) * 3, "std": (0.225,) * 3},
}


def load_video_model(spec: ModelSpec, path: Path, classes: int | None) -> Any:
    """Return the timm model of an entry of video, with the weights of a file.

    The file decides about tubelets, frames, the classes and the pooling, unless the entry does; of
    V-JEPA 2 see `load_vjepa2_model`.

    Args:
        spec: the entry.
        path: of the file.
        classes: number of labels; None if there are none.

    Raises:
        ConfigError: the file cannot be served; the message says why.
    """
    _check_architecture(spec)
    spec = _with_arguments_of_folder(spec)
    _check_clip(spec)
    if is_vjepa2(spec):
        return load_vjepa2_model(spec, path, classes)
    state_dict = read_checkpoint(path, spec.prefix)
    require_other(state_dict, path)
    source = find_source(state_dict)
    tensors = video_to_timm(state_dict)
    _check_kind(path, tensors, source)
    try:
        geometry = find_geometry(spec, tensors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if "pos_embed" not in tensors and "cls_token" not in tensors:
        width = len(tensors[PATCHES])
        tensors["pos_embed"] = sinusoid_positions(geometry.tokens, width)
    vit = _create(spec, tensors, geometry, classes)
    check_state_dict(vit, tensors, path, names_in_file(state_dict))
    vit.load_state_dict(tensors)
    preparation = {} if timm_config(spec) else _PREPARATION[source]
    vit.pretrained_cfg = {**vit.pretrained_cfg, **preparation}
    return vit


def _check_architecture(spec: ModelSpec) -> None:
    """Raise `ConfigError` unless the entry names an architecture of video."""
    if not takes_clips(spec):
        raise ConfigError(
            f"model {spec.name}: {spec.timm} is no architecture of video; name one of"
            f" {', '.join((*VIDEO_ARCHITECTURES, *VJEPA2_ARCHITECTURES))}"
        )


def _check_kind(path: Path, tensors: StateDict, source: Source) -> None:
    """Raise `ConfigError` for a file that holds no model of video which can be served."""
    check_attention(path, tensors)
    patches = tensors.get(PATCHES)
    if patches is None:
        raise ConfigError(
            f"{path} holds no Vision Transformer of video: it has {next(iter(tensors), 'nothing')},"
            " but no embedding of tubelets; docs/checkpoints.md lists the formats that load"
        )
    if patches.ndim != 5:
        raise ConfigError(
            f"{path} is a model of images: its patches have {patches.ndim - 2} dimensions, tubelets"
            " have 3"
        )
    if source is Source.MAE_ST and "cls_token" not in tensors:
        raise ConfigError(
            f"{path} is an MAE-ST without a class token, whose mean leaves out the first tubelet of"
            " a clip, which is not supported: that tubelet may merge into another token"
        )


def _with_arguments_of_folder(spec: ModelSpec) -> ModelSpec:
    """Return ``spec`` with the arguments of a folder of timm, where it has none of its own."""
    arguments = arguments_of_folder(spec) | spec.model_args
    size = arguments.pop("img_size", None)
    return spec.model_copy(update={"img_size": spec.img_size or size, "model_args": arguments})


def _check_clip(spec: ModelSpec) -> None:
    """Raise `ConfigError` unless ``frames`` and ``img_size`` are positive whole numbers."""
    size = spec.img_size
    numbers = {
        "model_args.frames": [spec.model_args.get("frames", 1)],
        "img_size": size if isinstance(size, list | tuple) else [size or 1],
    }
    for name, values in numbers.items():
        for value in values:
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"model {spec.name}: {name} has {value!r}, which is no positive whole number"
                )


def _create(
    spec: ModelSpec,
    tensors: StateDict,
    geometry: Geometry,
    classes: int | None,
) -> Any:
    arguments: dict[str, Any] = {
        "frames": geometry.frames,
        "tubelet": geometry.tubelet,
        "patch_size": geometry.patch_size,
        "in_chans": tensors[PATCHES].shape[1],
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        **_mlp_ratio(tensors),
        **_pooling(tensors),
        **spec.model_args,
    }
    sized = spec.model_copy(update={"img_size": geometry.size, "model_args": arguments})
    return create_timm_model(sized, count_classes(tensors, classes), pretrained=False)


def _mlp_ratio(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the ratio from which timm computes the width of the first layer of an MLP."""
    layer = tensors.get("blocks.0.mlp.fc1.weight")
    if layer is None or layer.ndim != 2:
        return {}
    hidden, width = layer.shape
    return {"mlp_ratio": (hidden + 0.5) / width}  # timm rounds down


def _pooling(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the class token and the pooling, by the tensors and the norms that a file has."""
    has_class_token = "cls_token" in tensors
    if "fc_norm.weight" in tensors:
        return {"class_token": has_class_token, "global_pool": "avg", "fc_norm": True}
    if has_class_token:
        return {"class_token": True, "global_pool": "token"}
    return {"global_pool": "avg", "fc_norm": False}
