"""Checkpoint files: read as one flat state dict, without running any code that they contain."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from server.errors import ConfigError

# Keys under which training scripts store the state dict. Averaged weights come first, as in timm's
# loader.
WRAPPER_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
# Prefixes that DistributedDataParallel, torch.compile, Lightning and teacher-student trainers put
# before every key.
KEY_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
# Names of the weights file beside config.json in a folder of the Hugging Face hub.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# First bytes of what `torch.save` writes: a zip archive, or, before torch 1.6, a bare pickle.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
# Enough to recognise every format, and a Git LFS pointer.
_HEADER_BYTES = 64
# A safetensors file begins with 8 bytes of length, then a JSON object.
_SAFETENSORS_JSON_OFFSET = 8


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the state dict in ``path``, on the CPU, without its wrappers and common prefixes.

    The content decides the format, not the name: safetensors, or what ``torch.save`` writes.

    Raises:
        ConfigError: the file has neither format, is damaged, contains other objects than tensors,
            or cannot be read.
    """
    header = _read_header(path)
    json_start = header[_SAFETENSORS_JSON_OFFSET:]
    content: Any
    if json_start.startswith(b"{"):
        content = _read_safetensors(path)
    elif header.startswith(_TORCH_MAGIC):
        content = _read_torch(path)
    else:
        problem = _describe_unknown_format(header)
        raise ConfigError(f"{path} is no safetensors or weights-only torch file: {problem}")
    state_dict = unwrap_state_dict(content, path)
    return strip_prefixes(state_dict)


def unwrap_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside what a training script saved.

    Raises:
        ConfigError: there is none.
    """
    inner = _unwrap_once(content)
    while inner is not None:
        content = inner
        inner = _unwrap_once(content)
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"{path} does not hold a dictionary of tensors; save model.state_dict() alone"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ConfigError(
                f"{path} does not hold a dictionary of tensors: {key!r} is of type"
                f" {type(value).__name__}; save model.state_dict() alone"
            )
    return content


def _unwrap_once(content: Any) -> dict[Any, Any] | None:
    if not isinstance(content, dict):
        return None
    for key in WRAPPER_KEYS:
        inner = content.get(key)
        if isinstance(inner, dict):
            return inner
    return None


def strip_prefixes(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state_dict`` without the `KEY_PREFIXES` that all of its keys share."""
    prefix = _shared_prefix(state_dict)
    while prefix is not None:
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        prefix = _shared_prefix(state_dict)
    return state_dict


def _shared_prefix(state_dict: dict[str, Tensor]) -> str | None:
    for prefix in KEY_PREFIXES:
        if all(key.startswith(prefix) for key in state_dict):
            return prefix
    return None


def find_weights_file(folder: Path) -> Path:
    """Return the weights file in a folder with the layout of the hub: ``config.json`` and weights.

    Raises:
        ConfigError: there is none, or there are several and none has a name of `HUB_FILES`.
    """
    for name in HUB_FILES:
        if (folder / name).is_file():
            return folder / name
    candidates = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    if len(candidates) != 1:
        names = ", ".join(path.name for path in candidates) or "none"
        raise ConfigError(
            f"{folder} must hold {' or '.join(HUB_FILES)}, or one file of weights; it holds {names}"
        )
    return candidates[0]


def _read_header(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEADER_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises several types
        raise ConfigError(
            f"{path} is damaged or cut short; copy or download it again ({error})"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        return _load_weights_only(path)
    except pickle.UnpicklingError as error:
        raise _unpickling_error(path, error) from error
    except Exception as error:  # damaged files raise many types
        if "TorchScript" in str(error):
            raise ConfigError(
                f"{path} is a TorchScript program; save its state_dict() instead"
            ) from error
        raise ConfigError(
            f"{path} is no torch file, or is damaged or cut short; copy or download it again"
        ) from error


def _load_weights_only(path: Path) -> Any:
    # Many published checkpoints also contain the training script's options: an
    # `argparse.Namespace`, which is plain data.
    allow_options = torch.serialization.safe_globals([argparse.Namespace])
    # torch warns of the formats that it then refuses.
    ignore_warnings = warnings.catch_warnings(action="ignore")
    # An open file, since torch would choose the format by the suffix of a path.
    with path.open("rb") as file, ignore_warnings, allow_options:
        return torch.load(file, map_location="cpu", weights_only=True)


def _unpickling_error(path: Path, error: pickle.UnpicklingError) -> ConfigError:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return ConfigError(
            f"{path} is no weights-only torch file: it holds a Python object ({refused[1]}),"
            " which could run code when loaded; save model.state_dict() alone, or as safetensors"
        )
    return ConfigError(f"{path} is no weights-only torch file, but some other pickle, or damaged")


def _describe_unknown_format(header: bytes) -> str:
    if not header:
        return "it is empty"
    if header.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to the weights; run `git lfs pull`"
    return f"it begins with {header[:16]!r}"
