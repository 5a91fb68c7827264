"""A checkpoint's tensors into a model: renamed, resized to the model's image, and every one accounted for."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from server.engine.loading.checkpoints import read_checkpoint
from server.engine.loading.key_names import names_in_file, to_timm
from server.errors import ConfigError

log = logging.getLogger("tome.engine")

State = Mapping[str, Tensor]

# Keys that tell what differs between the file's model and the entry's: what to do where only the
# model has them, and where only the file has them.
_ADVICE = (
    (
        r"fc_norm\.",
        'set model_args = { global_pool = "token" }',
        'set model_args = { global_pool = "avg" }',
    ),
    (
        r"dist_token|head_dist\.",
        "name an architecture that is not distilled",
        "name a distilled architecture",
    ),
    (
        r"head\.",
        "it has no classifier; name a file that was fine-tuned, or set num_classes = 0",
        "it has a classifier; set num_classes",
    ),
    (
        r"reg_token|register_tokens",
        "name an architecture without registers",
        "name an architecture with registers",
    ),
    (
        r".*\.ls[12]\.",
        "name an architecture without LayerScale",
        "set model_args = { init_values = 1e-5 }",
    ),
    (
        r"cls_token",
        'set model_args = { class_token = false, global_pool = "avg" }',
        "set model_args = { class_token = true }",
    ),
    (
        r"norm_pre\.",
        "set model_args = { pre_norm = false }",
        "set model_args = { pre_norm = true }",
    ),
    (
        r".*\.qkv\.bias",
        "set model_args = { qkv_bias = false }",
        "set model_args = { qkv_bias = true }",
    ),
)


def load_weights(vit: Any, path: Path) -> None:
    """Fill the timm model ``vit`` from a checkpoint file. Position embeddings are resized to the model's image.

    Raises:
        ConfigError: the file cannot be read, or does not fit; the message names the key, what was
            expected and what to do.
    """
    state = read_checkpoint(path)
    fitted = adapt(vit, to_timm(state))
    check_fit(vit, fitted, path, names_in_file(state))
    vit.load_state_dict(fitted)


def adapt(vit: Any, state: State) -> State:
    """``state`` after timm's own filter for the model: further families' names, and resizing to the model's grid."""
    convert = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    # The filter drops this layer without a word, and the answers would be wrong.
    if convert is None or any("pre_logits." in key for key in state):
        return state
    options = (
        {"adapt_layer_scale": True}
        if "adapt_layer_scale" in inspect.signature(convert).parameters
        else {}
    )
    try:
        converted: dict[str, Tensor] = convert(dict(state), vit, **options)
    except Exception:  # what the filter cannot convert goes on as it is, to the check that names it
        return state
    for key in ("pos_embed", "patch_embed.proj.weight"):
        if key in state and key in converted and converted[key].shape != state[key].shape:
            log.info(
                "%s resized from %s to %s",
                key,
                tuple(state[key].shape),
                tuple(converted[key].shape),
            )
    return converted


def check_fit(vit: Any, state: State, path: Path, names: Mapping[str, str]) -> None:
    """Every tensor that the model needs is in ``state`` with its shape, and nothing else is.

    Args:
        vit: The timm model.
        state: By timm's names.
        path: Of the file, for the message.
        names: The file's own names by timm's, where they differ.

    Raises:
        ConfigError: the first that does not fit.
    """
    expected: dict[str, Tensor] = vit.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]

    def name(key: str) -> str:
        return f"{key} ({names[key]} in the file)" if names.get(key, key) != key else key

    if len(missing) == len(expected):
        raise ConfigError(
            f"{path} holds no weights of such a model: it has {name(next(iter(state)))} where the"
            f" model has {missing[0]}; docs/checkpoints.md lists the formats that load"
        )
    if missing:
        raise ConfigError(
            f"{path} lacks {missing[0]}, which the model needs{_count(missing, 'missing')}; "
            f"{_advise(missing[0], state, present=False)}"
        )
    if unexpected:
        raise ConfigError(
            f"{path} has {name(unexpected[0])}, which the model does"
            f" not{_count(unexpected, 'unexpected')}; {_advise(unexpected[0], state, present=True)}"
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            found = tuple(state[key].shape)
            needed = tuple(tensor.shape)
            raise ConfigError(
                f"{path}: {name(key)} has shape {found}, the model needs {needed}; "
                f"{_advise_shape(key, found, needed, state)}"
            )


def _count(keys: list[str], what: str) -> str:
    return f" ({len(keys)} {what} in all)" if len(keys) > 1 else ""


def _advise(key: str, state: State, *, present: bool) -> str:
    if "pre_logits." in key:
        return (
            "timm's models have no such layer before the classifier any more: it cannot be served"
        )
    if key.startswith("norm.") and "fc_norm.weight" in state:
        return 'set model_args = { global_pool = "avg" }'
    for pattern, where_missing, where_unexpected in _ADVICE:
        if re.match(pattern, key):
            return where_unexpected if present else where_missing
    return _name_another(state)


def _advise_shape(key: str, found: tuple[int, ...], needed: tuple[int, ...], state: State) -> str:
    if key.startswith("head") and found[1:] == needed[1:]:
        return f"set num_classes = {found[0]}"
    if key == "patch_embed.proj.weight" and (found[0], *found[2:]) == (needed[0], *needed[2:]):
        return f"set in_chans = {found[1]}"
    if key == "pos_embed" and found[-1] == needed[-1]:
        return "it could not be resized; set img_size to that of the file's model"
    return _name_another(state)


def _name_another(state: State) -> str:
    """What the file's model is like, for someone who looks for its name."""
    depth = len({match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))})
    kernel = state.get("patch_embed.proj.weight")
    patch = (
        f", {kernel.shape[0]} wide, with patches of {kernel.shape[-1]}"
        if kernel is not None
        else ""
    )
    return f"name the architecture that the file was made for: {depth} blocks{patch}"
