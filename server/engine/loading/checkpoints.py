"""Checkpoint files: what is in them becomes one flat dictionary of tensors, and no code of theirs ever runs."""

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

# Keys under which training scripts keep the weights; averaged weights first, as timm's own loader
# prefers them.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
# What DistributedDataParallel, torch.compile, Lightning and teacher-student trainers put before
# every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
# The names under which the hub keeps weights beside config.json.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors in ``path``, out of their wrappers and without a prefix that all keys share; on the CPU.

    The format is told by the content, not by the name: safetensors, or what ``torch.save`` writes.

    Raises:
        ConfigError: the file is neither, is damaged, holds other objects than tensors, or cannot be
            read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if head[8:9] == b"{":
        content = _read_safetensors(path)
    elif head.startswith(
        (b"PK\x03\x04", b"\x80")
    ):  # a zip archive; before torch 1.6, a bare pickle
        content = _read_torch(path)
    else:
        raise ConfigError(f"{path} is no safetensors or weights-only torch file: {_describe(head)}")
    return strip_prefixes(unwrap(content, path))


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The dictionary of tensors inside what a training script saved.

    Raises:
        ConfigError: there is none.
    """
    while isinstance(content, dict):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
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


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without the wrappers' prefixes that all of its keys share."""
    while prefix := next(
        (prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None
    ):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def find_weights(folder: Path) -> Path:
    """The weights in a folder as the hub lays it out: ``config.json`` and one file of weights.

    Raises:
        ConfigError: there is none, or it is not clear which.
    """
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(
            f"{folder} must hold {' or '.join(FOLDER_FILES)}, or one file of weights; it holds"
            f" {names}"
        )
    return found[0]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # its errors are of several types
        raise ConfigError(
            f"{path} is damaged or cut short; copy or download it again ({error})"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        # Options of argparse, plain data, lie beside many published weights.
        with (
            path.open("rb") as file,  # given a path, torch goes by its suffix
            warnings.catch_warnings(
                action="ignore"
            ),  # torch warns of the formats that it then refuses
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if blocked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ConfigError(
                f"{path} is no weights-only torch file: it holds a Python object ({blocked[1]}),"
                " which could run code when loaded; save model.state_dict() alone, or as"
                " safetensors"
            ) from error
        raise ConfigError(
            f"{path} is no weights-only torch file, but some other pickle, or damaged"
        ) from error
    except Exception as error:  # damaged files raise many types
        if "TorchScript" in str(error):
            raise ConfigError(
                f"{path} is a TorchScript program; save its state_dict() instead"
            ) from error
        raise ConfigError(
            f"{path} is no torch file, or is damaged or cut short; copy or download it again"
        ) from error


def _describe(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to the weights; run `git lfs pull`"
    return f"it begins with {head[:16]!r}"
