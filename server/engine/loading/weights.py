"""Weights: a checkpoint's tensors, renamed and resized for a model, and checked one by one."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from server.engine.loading.checkpoints import read_checkpoint
from server.engine.loading.key_names import names_in_file, to_timm
from server.errors import ConfigError

log = logging.getLogger("tome.engine")

StateDict = Mapping[str, Tensor]
Shape = tuple[int, ...]

# What timm's filters resize to the model's image and patches.
RESIZED_KEYS = ("pos_embed", "patch_embed.proj.weight")


class _Advice(NamedTuple):
    """What to do about a key that matches ``pattern`` and that only one side has."""

    pattern: str
    if_missing: str
    if_unexpected: str


_ADVICE = (
    _Advice(
        pattern=r"fc_norm\.",
        if_missing='set model_args = { global_pool = "token" }',
        if_unexpected='set model_args = { global_pool = "avg" }',
    ),
    _Advice(
        pattern=r"dist_token|head_dist\.",
        if_missing="name an architecture that is not distilled",
        if_unexpected="name a distilled architecture",
    ),
    _Advice(
        pattern=r"head\.",
        if_missing="it has no classifier; name a file that was fine-tuned, or set num_classes = 0",
        if_unexpected="it has a classifier; set num_classes",
    ),
    _Advice(
        pattern=r"reg_token|register_tokens",
        if_missing="name an architecture without registers",
        if_unexpected="name an architecture with registers",
    ),
    _Advice(
        pattern=r".*\.ls[12]\.",
        if_missing="name an architecture without LayerScale",
        if_unexpected="set model_args = { init_values = 1e-5 }",
    ),
    _Advice(
        pattern=r"cls_token",
        if_missing='set model_args = { class_token = false, global_pool = "avg" }',
        if_unexpected="set model_args = { class_token = true }",
    ),
    _Advice(
        pattern=r"norm_pre\.",
        if_missing="set model_args = { pre_norm = false }",
        if_unexpected="set model_args = { pre_norm = true }",
    ),
    _Advice(
        pattern=r".*\.qkv\.bias",
        if_missing="set model_args = { qkv_bias = false }",
        if_unexpected="set model_args = { qkv_bias = true }",
    ),
)


def load_weights(vit: Any, path: Path, prefix: str | None = None) -> None:
    """Load a checkpoint file into the timm model ``vit``.

    Position embeddings are resized to the model's image.

    Args:
        vit: the timm model.
        path: of the file.
        prefix: of the keys of the model in the file; by default it is found.

    Raises:
        ConfigError: the file cannot be read, or does not fit; the message names the key, what is
            expected and what to do.
    """
    state_dict = read_checkpoint(path, prefix)
    converted = apply_timm_filter(vit, to_timm(state_dict))
    check_state_dict(vit, converted, path, names_in_file(state_dict))
    vit.load_state_dict(converted)


def apply_timm_filter(vit: Any, state_dict: StateDict) -> StateDict:
    """Return ``state_dict`` after timm's filter for the model, which renames keys and resizes."""
    module = sys.modules[type(vit).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state_dict
    # The filter would drop this layer silently, and the results would be wrong.
    if any("pre_logits." in key for key in state_dict):
        return state_dict
    options = {}
    if "adapt_layer_scale" in inspect.signature(convert).parameters:
        options["adapt_layer_scale"] = True
    try:
        converted: dict[str, Tensor] = convert(dict(state_dict), vit, **options)
    except Exception:  # the check that follows names what does not fit
        return state_dict
    _log_resized(state_dict, converted)
    return converted


def _log_resized(state_dict: StateDict, converted: StateDict) -> None:
    for key in RESIZED_KEYS:
        if key not in state_dict or key not in converted:
            continue
        old_shape = tuple(state_dict[key].shape)
        new_shape = tuple(converted[key].shape)
        if new_shape != old_shape:
            log.info("%s resized from %s to %s", key, old_shape, new_shape)


def check_state_dict(
    vit: Any,
    state_dict: StateDict,
    path: Path,
    names: Mapping[str, str],
) -> None:
    """Check that ``state_dict`` has every tensor of the model with its shape, and no other.

    Args:
        vit: the timm model.
        state_dict: with timm's names.
        path: of the file, for the message.
        names: the names in the file of the keys that were renamed.

    Raises:
        ConfigError: names the first tensor that does not fit.
    """
    expected: dict[str, Tensor] = vit.state_dict()
    _check_missing(expected, state_dict, path, names)
    _check_unexpected(expected, state_dict, path, names)
    for key, tensor in expected.items():
        found_shape = tuple(state_dict[key].shape)
        expected_shape = tuple(tensor.shape)
        if found_shape != expected_shape:
            advice = _advise_on_shape(key, found_shape, expected_shape, state_dict)
            raise ConfigError(
                f"{path}: {_format_key(key, names)} has shape {found_shape},"
                f" the model needs {expected_shape}; {advice}"
            )


def _check_missing(
    expected: StateDict,
    state_dict: StateDict,
    path: Path,
    names: Mapping[str, str],
) -> None:
    missing = [key for key in expected if key not in state_dict]
    if not missing:
        return
    first = missing[0]
    if len(missing) == len(expected):
        found = _format_key(next(iter(state_dict)), names)
        raise ConfigError(
            f"{path} holds no weights of such a model: it has {found} where the model has {first};"
            " docs/checkpoints.md lists the formats that load"
        )
    count = _format_count(missing, "missing")
    advice = _advise_on_key(first, state_dict, missing=True)
    raise ConfigError(f"{path} lacks {first}, which the model needs{count}; {advice}")


def _check_unexpected(
    expected: StateDict,
    state_dict: StateDict,
    path: Path,
    names: Mapping[str, str],
) -> None:
    unexpected = [key for key in state_dict if key not in expected]
    if not unexpected:
        return
    first = unexpected[0]
    count = _format_count(unexpected, "unexpected")
    advice = _advise_on_key(first, state_dict, missing=False)
    raise ConfigError(
        f"{path} has {_format_key(first, names)}, which the model does not{count}; {advice}"
    )


def _format_key(key: str, names: Mapping[str, str]) -> str:
    """Return ``key``, with its name in the file if that differs."""
    name = names.get(key, key)
    if name == key:
        return key
    return f"{key} ({name} in the file)"


def _format_count(keys: list[str], problem: str) -> str:
    if len(keys) == 1:
        return ""
    return f" ({len(keys)} {problem} in all)"


def _advise_on_key(key: str, state_dict: StateDict, *, missing: bool) -> str:
    if "pre_logits." in key:
        return (
            "timm's models have no such layer before the classifier any more: it cannot be served"
        )
    if key.startswith("norm.") and "fc_norm.weight" in state_dict:
        return 'set model_args = { global_pool = "avg" }'
    for advice in _ADVICE:
        if re.match(advice.pattern, key):
            return advice.if_missing if missing else advice.if_unexpected
    return _advise_other_architecture(state_dict)


def _advise_on_shape(key: str, found: Shape, expected: Shape, state_dict: StateDict) -> str:
    if key.startswith("head") and found[1:] == expected[1:]:
        return f"set num_classes = {found[0]}"
    if key == "head.weight" and found[1:] == (2 * expected[1],):
        return (
            "its classifier reads the class token and the mean of the patches, as in transformers'"
            ' DINOv2; serve its folder with timm = "local-dir:FOLDER"'
        )
    if key == "patch_embed.proj.weight":
        found_without_channels = (found[0], *found[2:])
        expected_without_channels = (expected[0], *expected[2:])
        if found_without_channels == expected_without_channels:
            return f"set in_chans = {found[1]}"
    if key == "pos_embed" and found[-1] == expected[-1]:
        return "it could not be resized; set img_size to that of the file's model"
    return _advise_other_architecture(state_dict)


def _advise_other_architecture(state_dict: StateDict) -> str:
    """Describe the file's model, so that the user can look for its name in timm."""
    blocks = set()
    for key in state_dict:
        match = re.match(r"blocks\.(\d+)\.", key)
        if match:
            blocks.add(match[1])
    architecture = f"{len(blocks)} blocks"
    embedding = state_dict.get("patch_embed.proj.weight")
    if embedding is not None:
        width = embedding.shape[0]
        patch_size = embedding.shape[-1]
        architecture += f", {width} wide, with patches of {patch_size}"
    return f"name the architecture that the file was made for: {architecture}"
