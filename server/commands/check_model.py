"""Whether merging supports an architecture: ``tome-serve models --check NAME``."""

from __future__ import annotations

import difflib

import timm
import torch

import tome_core
import tome_core.networks.audio_architectures  # timm then knows those of sound,
import tome_core.networks.video_architectures  # and these of video
from server.errors import ConfigError
from tome_core.split import most_mergeable


def check_model(name: str) -> int:
    """Print whether token merging supports timm's model ``name``, and why not where it does not.

    Neither downloads nor allocates weights. Returns 0 for a supported model and 1 for any other.

    Raises:
        ConfigError: timm has no model of this name, or cannot create it without weights.
    """
    architecture = name.partition(".")[0]  # without the tag of pretrained weights
    if not timm.is_model(architecture):
        raise ConfigError(_unknown(name, architecture))
    try:
        with torch.device("meta"):  # shapes alone: no memory
            network = timm.create_model(architecture).eval()
    except Exception as error:  # timm raises many types
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"timm cannot create {name!r} without weights: {reason}") from error
    family = type(network).__name__
    try:
        model = tome_core.patch(network)
    except tome_core.UnsupportedModelError as error:
        print(f"{name}: not supported: {error}")
        return 1
    channels, *size = network.pretrained_cfg["input_size"]
    # A clip is as high as all of its frames.
    size = getattr(network.patch_embed, "img_size", None) or size
    inputs = torch.empty(1, channels, *size, device="meta")
    tokens = model.input_tokens(inputs)
    largest_r = most_mergeable(tokens, model.merging.prefix)
    print(f"{name}: supported ({family}, {tokens} tokens, r from 0 to {largest_r})")
    return 0


def _unknown(name: str, architecture: str) -> str:
    if ":" in name:  # as local-dir:FOLDER
        return f"{name!r} is not an architecture of timm; give one such as vit_base_patch16_224"
    similar = difflib.get_close_matches(architecture, timm.list_models(), n=3)
    hint = f"; did you mean {', '.join(similar)}?" if similar else ""
    return f"timm {timm.__version__} has no model {name!r}{hint}"
