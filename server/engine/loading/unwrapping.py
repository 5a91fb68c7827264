"""The state dict inside what a training script saved: without wrappers, prefixes and metrics."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from server.errors import ConfigError

log = logging.getLogger("tome.engine")

StateDict = dict[str, Tensor]

# Keys under which training scripts store the state dict. Averaged weights come first, as in timm's
# loader; the teacher of self-distillation (DINO) is the average of its student, and the target
# encoder (V-JEPA 2) that of its encoder.
WRAPPER_KEYS = (
    "state_dict_ema",
    "model_ema_state_dict",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "teacher",
    "target_encoder",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
)
# Prefixes that DistributedDataParallel, torch.compile, Lightning and teacher-student trainers put
# before every key.
KEY_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
# A part of the names of CLIP, but before timm's names a prefix as any other.
_VISUAL = "visual."
# Names that wrappers around single layers put into the middle of keys.
INNER_NAMES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

# A Vision Transformer is recognised by the weight of its patch embedding: in timm's names,
# torchvision's, transformers' and OpenAI's. What precedes it is a prefix, unless the format itself
# has this part: the base model in transformers, the image tower in CLIP and others, the transformer
# of AST.
_PATCH_EMBEDDING = re.compile(
    r"""(?P<root>(?:[^.]+\.)*?)
    (?: (?:v\.|visual\.(?:trunk\.)?|vision_encoder\.)?patch_embed\.proj
      | conv_proj
      | visual\.conv1
      | (?:(?:vit|deit|beit|dinov2|dinov2_with_registers|vision_model
             |audio_spectrogram_transformer|videomae|vivit)\.)?
        embeddings\.patch_embeddings?(?:\.projection)?
      | (?:vjepa2\.)?encoder\.embeddings\.patch_embeddings\.proj
    )\.weight""",
    re.VERBOSE,
)
# The decoder with which VideoMAE is pre-trained, beside its encoder.
_VIDEOMAE_DECODER = ("encoder_to_decoder.", "decoder.", "mask_token")
# Parts of the names of tensors that a training script keeps beside the model and that do not take
# part in its forward pass.
_NOT_OF_THE_MODEL = re.compile(
    r"loss|criteri|metric|accuracy|class_weight|pos_weight"
    r"|(?:^|[_.])(?:acc|auc|auroc|f1|precision|recall|confusion|confmat|map|mse|iou|ece"
    r"|kappa|n_averaged)(?:[_.\d]|$)",
    re.IGNORECASE,
)


def find_state_dict(content: Any, path: Path, prefix: str | None = None) -> StateDict:
    """Return the tensors of the model inside what a training script saved.

    Args:
        content: what was saved.
        path: of the file, for messages.
        prefix: of the keys of the model; by default it is found.

    Raises:
        ConfigError: there are no weights, or those of several models, or parts of the model lie
            outside of it.
    """
    if prefix:
        return _select(content, path, prefix)
    state_dict = _unwrap(content, path)
    return _strip(_without_videomae_decoder(_without_inner_names(state_dict)), path)


def _unwrap(content: Any, path: Path) -> StateDict:
    inner = _unwrap_once(content)
    while inner is not None:
        content = inner
        inner = _unwrap_once(content)
    holds_tensors = isinstance(content, dict) and _has_tensor(content)
    if holds_tensors and not any(isinstance(value, Tensor) for value in content.values()):
        content = _only_vit(content, path)
    return _check_tensors(content, path)


def _unwrap_once(content: Any) -> dict[Any, Any] | None:
    if not isinstance(content, dict):
        return None
    needs_tensors = _has_tensor(content)
    for key in WRAPPER_KEYS:
        inner = content.get(key)
        if isinstance(inner, dict) and (_has_tensor(inner) or not needs_tensors):
            return inner
    return None


def _has_tensor(content: dict[Any, Any]) -> bool:
    for value in content.values():
        if isinstance(value, Tensor):
            return True
        if isinstance(value, dict) and _has_tensor(value):
            return True
    return False


def _only_vit(content: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Return the one Vision Transformer among the dictionaries in ``content``; itself if none."""
    found = {}
    for name, inner in _dictionaries(content):
        if _is_vit(inner):
            found[name] = inner
    if len(found) > 1:
        raise _several_models(path, list(found))
    return next(iter(found.values()), content)


def _dictionaries(content: dict[Any, Any], name: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    for key, value in content.items():
        if isinstance(value, dict):
            inner_name = f"{name}{key}."
            yield inner_name, value
            yield from _dictionaries(value, inner_name)


def _check_tensors(content: Any, path: Path) -> StateDict:
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"{path} does not hold a dictionary of tensors; save model.state_dict() alone"
        )
    if _is_vit(content):  # whose tensors are known by their names: the rest is metadata
        return {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ConfigError(
                f"{path} does not hold a dictionary of tensors: {key!r} is of type"
                f" {type(value).__name__}; save model.state_dict() alone"
            )
    return content


def _is_vit(content: dict[Any, Any]) -> bool:
    names = [key for key, value in content.items() if isinstance(value, Tensor)]
    return any(isinstance(name, str) and _PATCH_EMBEDDING.fullmatch(name) for name in names)


def _without_inner_names(state_dict: StateDict) -> StateDict:
    renamed = {}
    for key, value in state_dict.items():
        for name in INNER_NAMES:
            key = key.replace(name, "")
        renamed[key] = value
    return renamed


def _without_videomae_decoder(state_dict: StateDict) -> StateDict:
    """Return ``state_dict`` without the decoder of VideoMAE's pre-training, if it has one."""
    bridge = _VIDEOMAE_DECODER[0]
    root = next((key.partition(bridge)[0] for key in state_dict if bridge in key), None)
    if root is None:
        return state_dict
    decoder = tuple(f"{root}{part}" for part in _VIDEOMAE_DECODER)
    return {key: value for key, value in state_dict.items() if not key.startswith(decoder)}


def _strip(state_dict: StateDict, path: Path) -> StateDict:
    """Return the model of ``state_dict`` without its prefix.

    Raises:
        ConfigError: there are several models, or parts outside of it.
    """
    roots = {}
    for key in state_dict:
        match = _PATCH_EMBEDDING.fullmatch(key)
        if match:
            roots[match["root"]] = key
    if not roots:
        return strip_prefixes(state_dict)
    if "" in roots:
        return strip_prefixes(_strip_visual(_without_metrics(state_dict, path)))
    if len(roots) > 1:
        raise _several_models(path, list(roots))
    root = next(iter(roots))
    outside = [key for key in state_dict if not key.startswith(root)]
    for key in outside:
        if not _is_left_out(key, state_dict[key]):
            raise ConfigError(
                f"{path}: {key} lies outside of the model, whose keys begin with {root!r};"
                " what the two compute together is not known. To serve the model alone, set"
                f' prefix = "{root}" (and num_classes = 0 if it has no classifier of its own);'
                " or save both as one model of timm"
            )
    if outside:
        log.info("%s: left out %s", path, ", ".join(outside))
    inside = {
        key.removeprefix(root): value for key, value in state_dict.items() if key not in outside
    }
    return _strip_visual(inside)


def _strip_visual(state_dict: StateDict) -> StateDict:
    is_timm = f"{_VISUAL}patch_embed.proj.weight" in state_dict
    if is_timm and all(key.startswith(_VISUAL) for key in state_dict):
        return {key.removeprefix(_VISUAL): value for key, value in state_dict.items()}
    return state_dict


def _without_metrics(state_dict: StateDict, path: Path) -> StateDict:
    """Return a model without prefix, and without what a training script registered beside it."""
    outside = [key for key in state_dict if _NOT_OF_THE_MODEL.search(key)]
    if outside:
        log.info("%s: left out %s", path, ", ".join(outside))
    return {key: value for key, value in state_dict.items() if key not in outside}


def _is_left_out(key: str, value: Tensor) -> bool:
    """Return whether a tensor outside of the model is a metric, a count or part of a loss."""
    is_weight = value.is_floating_point() and value.numel() > 1
    return not is_weight or _NOT_OF_THE_MODEL.search(key) is not None


def _several_models(path: Path, prefixes: list[str]) -> ConfigError:
    names = ", ".join(repr(prefix) for prefix in sorted(prefixes))
    return ConfigError(
        f"{path} holds several Vision Transformers, whose keys begin with {names}; set one of them"
        " as prefix"
    )


def strip_prefixes(state_dict: StateDict) -> StateDict:
    """Return ``state_dict`` without the `KEY_PREFIXES` that all of its keys share."""
    prefix = _shared_prefix(state_dict)
    while prefix is not None:
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        prefix = _shared_prefix(state_dict)
    return state_dict


def _shared_prefix(state_dict: StateDict) -> str | None:
    for prefix in KEY_PREFIXES:
        if all(key.startswith(prefix) for key in state_dict):
            return prefix
    return None


def _select(content: Any, path: Path, prefix: str) -> StateDict:
    """Return the tensors whose keys begin with ``prefix``, without it.

    Keys of nested dictionaries are joined by dots. The names of wrappers need not be given.
    """
    state_dict: StateDict = {}
    dotted = prefix if prefix.endswith(".") else f"{prefix}."
    inner: Any = content
    while inner is not None:
        state_dict = _without_inner_names(dict(_tensors(inner)))
        for start in (dotted, prefix):
            selected = {
                key.removeprefix(start): value
                for key, value in state_dict.items()
                if key.startswith(start)
            }
            if selected:
                return strip_prefixes(selected)
        inner = _unwrap_once(inner)
    beginnings = sorted({key.partition(".")[0] for key in state_dict})
    raise ConfigError(
        f"{path}: no key begins with prefix = {prefix!r}; they begin with"
        f" {', '.join(beginnings[:10]) or 'nothing: it holds no tensors'}"
    )


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            inner_name = f"{name}.{key}" if name else str(key)
            yield from _tensors(value, inner_name)
