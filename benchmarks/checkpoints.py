"""Random weights of a timm architecture, as a TOML file for the server: speed needs no more."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def write_random_model(architecture: str, folder: Path, seed: int | None = None) -> Path:
    """Save ``architecture`` with random weights in ``folder``; returns the path of the models file.

    Args:
        seed: of the weights; None for others every time.
    """
    if seed is not None:
        torch.manual_seed(seed)
    save_file(timm.create_model(architecture).state_dict(), folder / "random.safetensors")
    config = folder / "models.toml"
    entry = {"name": architecture, "timm": architecture, "checkpoint": "random.safetensors"}
    config.write_text(
        "[[models]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
    )
    return config
