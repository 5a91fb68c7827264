"""Files of a training run: its state, from which it resumes, and the weights that it ends with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state``. An interrupted write keeps the file that was there."""
    new_path = path.with_suffix(".new")
    torch.save(dict(state), new_path)
    new_path.replace(path)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the weights of a state that `save_state` wrote, in float32 on the CPU."""
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    return {key: value.float() for key, value in state.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return what `save_weights` wrote, in float32 on the CPU."""
    return {key: value.float() for key, value in load_file(path).items()}


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``weights`` as float16 safetensors."""
    half = {key: value.to("cpu", torch.float16).contiguous() for key, value in weights.items()}
    save_file(half, path)
    path.chmod(0o644)  # save_file creates a file that only its owner can read.
