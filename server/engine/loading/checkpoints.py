"""Checkpoint files: read as one flat state dict, without running any code that they contain."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from server.engine.loading.inert_objects import STAND_INS
from server.engine.loading.unwrapping import find_state_dict
from server.errors import ConfigError

# Names of the weights file beside config.json in a folder of the Hugging Face hub. Large models
# have an index of several files instead.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# First bytes of what `torch.save` writes: a zip archive, or, before torch 1.6, a bare pickle.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
_OTHER_FORMATS = {
    b"\x93NUMPY": "an array of NumPy",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"GGUF": "a GGUF file",
}
# Enough to recognise every format, and a Git LFS pointer.
_HEADER_BYTES = 64
# A safetensors file begins with 8 bytes of length, then a JSON object.
_SAFETENSORS_JSON_OFFSET = 8


def read_checkpoint(path: Path, prefix: str | None = None) -> dict[str, Tensor]:
    """Return the state dict in ``path``, on the CPU in float32, without its wrappers and prefixes.

    The content decides the format, not the name: safetensors, or what ``torch.save`` writes. An
    index of the hub (``*.index.json``) stands for the files that it names.

    Args:
        path: the file.
        prefix: of the keys of the model; by default it is found.

    Raises:
        ConfigError: the file has neither format, is damaged, contains other objects than tensors,
            or cannot be read; or the model in it cannot be told from what lies beside it.
    """
    if path.name.endswith(INDEX_SUFFIX):
        content = _read_shards(path)
    else:
        content = _read_file(path)
    state_dict = find_state_dict(content, path, prefix)
    # The model's dtype. What is computed from tensors of 16 bits would be rounded to 16 bits.
    return {
        key: value.float() if value.is_floating_point() else value
        for key, value in state_dict.items()
    }


def _read_file(path: Path) -> Any:
    header = _read_header(path)
    json_start = header[_SAFETENSORS_JSON_OFFSET:]
    if json_start.startswith(b"{"):
        return _read_safetensors(path)
    if header.startswith(_TORCH_MAGIC):
        return _read_torch(path)
    problem = _describe_unknown_format(header)
    raise ConfigError(f"{path} is no safetensors or weights-only torch file: {problem}")


def _read_shards(path: Path) -> dict[str, Any]:
    """Return the tensors of all files that an index names (``weight_map``: file by key)."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"{path} is no index of weights: it has no weight_map")
    content: dict[str, Any] = {}
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name:
            raise ConfigError(f"{path} names a file of another folder: {name}")
        content |= _read_file(path.parent / name)
    return content


def find_weights_file(folder: Path) -> Path:
    """Return the weights file in a folder with the layout of the hub: ``config.json`` and weights.

    Raises:
        ConfigError: there is none, or there are several and none has a name of `HUB_FILES`.
    """
    for name in HUB_FILES:
        for path in (folder / name, folder / f"{name}{INDEX_SUFFIX}"):
            if path.is_file():
                return path
    candidates = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    if len(candidates) != 1:
        names = ", ".join(path.name for path in candidates) or "none"
        raise ConfigError(
            f"{folder} must hold {' or '.join(HUB_FILES)}, or one file of weights; it holds {names}"
        )
    return candidates[0]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        ConfigError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return content


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
        if _is_numpy_archive(path):
            raise ConfigError(
                f"{path} is no torch file but an archive of NumPy (.npz), as of JAX; load it with"
                " timm.create_model(NAME, checkpoint_path=FILE) and save model.state_dict()"
            ) from error
        raise ConfigError(
            f"{path} is no torch file, or is damaged or cut short; copy or download it again"
        ) from error


def _is_numpy_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _load_weights_only(path: Path) -> Any:
    allow_metadata = torch.serialization.safe_globals(STAND_INS)
    # torch warns of the formats that it then refuses.
    ignore_warnings = warnings.catch_warnings(action="ignore")
    # An open file, since torch would choose the format by the suffix of a path.
    with path.open("rb") as file, ignore_warnings, allow_metadata:
        return torch.load(file, map_location="cpu", weights_only=True)


def _unpickling_error(path: Path, error: pickle.UnpicklingError) -> ConfigError:
    if "DTensor" in str(error):
        return ConfigError(
            f"{path} holds tensors that are split over several devices; save the full state dict"
        )
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
    for magic, name in _OTHER_FORMATS.items():
        if header.startswith(magic):
            return f"it is {name}; convert it to safetensors"
    return f"it begins with {header[:16]!r}"
