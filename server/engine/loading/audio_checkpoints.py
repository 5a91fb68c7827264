"""Models of sound from files of their authors: AST, SSAST and AudioMAE, and what timm saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from server.catalog.entries import ModelSpec
from server.engine.loading.checkpoints import read_checkpoint
from server.engine.loading.front_end import FrontEnd, check_spectrogram
from server.engine.loading.key_names import names_in_file, to_timm
from server.engine.loading.modality import arguments_of_folder, is_ast
from server.engine.loading.spectrogram_geometry import Geometry, as_pair, find_geometry
from server.engine.loading.spectrogram_names import is_spectrogram_model
from server.engine.loading.time_positions import fit_in_time
from server.engine.loading.timm_models import count_classes, create_timm_model
from server.engine.loading.transformers_names import require_other
from server.engine.loading.weights import check_state_dict
from server.errors import ConfigError
from tome_core.networks.audio_architectures import AST_ARCHITECTURES

StateDict = dict[str, Tensor]

_PATCHES = "patch_embed.proj.weight"
_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
# Of SSAST's pre-training, which predicts masked patches.
_PRETRAINING = ("cpredlayer.", "gpredlayer.", "mask_embed", "p_input_")


def load_audio_model(spec: ModelSpec, path: Path, classes: int | None) -> Any:
    """Return the timm model of an entry of sound, with the weights of a file.

    The file decides about patches, the window, the classes and the pooling, unless the entry does.

    Args:
        spec: the entry.
        path: of the file.
        classes: number of labels; None if there are none.

    Raises:
        ConfigError: the file cannot be served; the message says why.
    """
    state_dict = read_checkpoint(path, spec.prefix)
    require_other(state_dict, path)
    tensors = to_timm(state_dict)
    if is_spectrogram_model(state_dict) and not _has_both_tokens(tensors):
        raise ConfigError(
            f"{path} is a model of AST's authors without a class token or a distillation token,"
            " as SSAST's base_nokd; such are not supported"
        )
    spec = spec.model_copy(update={"model_args": _model_args(spec)})
    _check_kind(spec, path, tensors)
    geometry = _geometry(spec, path, tensors)
    vit = _create(spec, tensors, geometry, classes)
    check_spectrogram(spec, vit)
    _fit_positions(vit, tensors, geometry)
    if geometry.time_last and "fc_norm.weight" not in tensors and not vit.num_classes:
        vit.fc_norm = nn.Identity()  # the norm is a part of the classifier, and there is none
    check_state_dict(vit, tensors, path, names_in_file(state_dict))
    vit.load_state_dict(tensors)
    vit.pretrained_cfg = {**vit.pretrained_cfg, "front_end": FrontEnd()}
    return vit


def _has_both_tokens(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether there are a class token and a distillation token, as in AST."""
    return "cls_token" in tensors and "reg_token" in tensors


def _model_args(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the architecture: of a folder of timm, then of the entry."""
    arguments = arguments_of_folder(spec)
    for name in ("img_size", "in_chans"):
        arguments.pop(name, None)  # the file and the entry decide
    return {**arguments, **spec.model_args}


def _check_kind(spec: ModelSpec, path: Path, tensors: StateDict) -> None:
    """Raise `ConfigError` for a file of another kind than the entry's architecture."""
    if any(key.startswith(_PRETRAINING) for key in tensors):
        raise ConfigError(
            f"{path} is a model that SSAST pre-trained: it predicts masked patches, and its"
            " classifier comes with fine-tuning; name a file that was fine-tuned"
        )
    patches = tensors.get(_PATCHES)
    if patches is None or patches.ndim != 4 or "pos_embed" not in tensors:
        raise ConfigError(
            f"{path} holds no Vision Transformer of sound: it has {next(iter(tensors), 'nothing')},"
            " but no patch embedding with learned positions; docs/checkpoints.md lists the formats"
            " that load"
        )
    if patches.shape[1] != 1:
        raise ConfigError(
            f"{path} is a model of images: its patches have {patches.shape[1]} channels, those of a"
            " spectrogram have one"
        )
    has_pair = _has_both_tokens(tensors)
    if is_ast(spec) and not has_pair:
        raise ConfigError(
            f"{path} is no AST, which has a class token and a distillation token; for AudioMAE,"
            " name an architecture of timm, as vit_base_patch16_224"
        )
    if not is_ast(spec) and has_pair:
        raise ConfigError(
            f"{path} has a class token and a distillation token, as AST does: name its"
            f" architecture, one of {', '.join(AST_ARCHITECTURES)}"
        )


def _geometry(spec: ModelSpec, path: Path, tensors: StateDict) -> Geometry:
    """Return the geometry of the file.

    Raises:
        ConfigError: there is none for `MEL_BINS`.
    """
    patch_size = as_pair(tensors[_PATCHES].shape[-2:])
    positions = tensors["pos_embed"].shape[1]
    prefix = sum(tensors[name].shape[1] for name in _PREFIX_TOKENS if name in tensors)
    if spec.model_args.get("no_embed_class"):
        prefix = 0
    try:
        return find_geometry(spec, patch_size, positions, prefix, time_last=is_ast(spec))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _create(
    spec: ModelSpec,
    tensors: StateDict,
    geometry: Geometry,
    classes: int | None,
) -> Any:
    arguments: dict[str, Any] = {"patch_size": geometry.patch_size, **_pooling(spec, tensors)}
    if geometry.time_last:
        arguments["stride"] = geometry.stride
    sized = spec.model_copy(
        update={
            "in_chans": 1,
            "img_size": spec.img_size or geometry.size,
            "model_args": {**arguments, **spec.model_args},
        }
    )
    return create_timm_model(sized, count_classes(tensors, classes), pretrained=False)


def _pooling(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the pooling of AudioMAE, by its norms: after the mean of the patches, or before."""
    if is_ast(spec):
        return {}
    if "fc_norm.weight" in tensors:
        return {"global_pool": "avg"}
    if "head.weight" not in tensors:  # pre-trained: it has features alone
        return {"global_pool": "avg", "fc_norm": False}
    return {}


def _fit_positions(vit: Any, tensors: StateDict, geometry: Geometry) -> None:
    """Fit the positions among ``tensors`` to the window that the entry asks for."""
    tensors["pos_embed"] = fit_in_time(
        tensors["pos_embed"],
        geometry.grid,
        vit.patch_embed.grid_size,
        tensors["pos_embed"].shape[1] - geometry.grid[0] * geometry.grid[1],
        time_last=geometry.time_last,
    )
