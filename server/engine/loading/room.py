"""Whether there is room for models beside those that serve: what their weights take, by the files.

It counts float32, in which all weights are loaded first, and nothing else, so that no reload is
refused which would have fit.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from server.catalog.entries import ModelSpec
from server.engine.device.memory import free_bytes
from server.engine.loading.checkpoints import INDEX_SUFFIX
from server.engine.loading.model_loader import find_checkpoint
from server.errors import ConfigError

log = logging.getLogger("tome.engine")

_FLOAT32_BYTES = 4


def check_room(specs: Sequence[ModelSpec], device: torch.device) -> None:
    """Log what the weights take and what is free on ``device``.

    Raises:
        ConfigError: they cannot fit.
    """
    sizes = {spec.name: weight_bytes(spec) for spec in specs}
    needed = sum(size for size in sizes.values() if size is not None)
    unknown = [name for name, size in sizes.items() if size is None]
    free = free_bytes(device)
    more = f", and those of {', '.join(unknown)}, whose size is not known yet" if unknown else ""
    available = "an unknown amount is" if free is None else f"{free / 1e6:,.0f} MB are"
    text = f"weights of {needed / 1e6:,.0f} MB{more}; {available} free on {device}"
    if free is not None and needed > free:
        raise ConfigError(
            f"there is no room beside the models that serve for {text}. Free memory, or restart"
            " the server, which then never has both"
        )
    log.info("beside the models that serve: %s", text)


def weight_bytes(spec: ModelSpec) -> int | None:
    """Return the bytes of a model's weights in float32; None for those of the hub."""
    path = find_checkpoint(spec)
    if path is None:
        return None
    try:
        return sum(_file_bytes(file) for file in _files(path))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, struct.error):
        return None  # the loader says what is wrong with it


def _files(path: Path) -> list[Path]:
    """Return the files of a checkpoint, of which an index may name several."""
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    names = json.loads(path.read_text("utf-8"))["weight_map"].values()
    return [path.parent / name for name in sorted(set(names))]


def _file_bytes(path: Path) -> int:
    if path.suffix != ".safetensors":
        return path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("this is no header")
        header = json.loads(file.read(length))
    shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return sum(_FLOAT32_BYTES * math.prod(shape) for shape in shapes)
