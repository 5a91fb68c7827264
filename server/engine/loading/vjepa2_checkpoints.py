"""V-JEPA 2's encoders from files of its authors, and whole models that timm saved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from server.catalog.entries import ModelSpec
from server.engine.loading.checkpoints import read_checkpoint
from server.engine.loading.timm_models import count_classes, create_timm_model
from server.engine.loading.transformers_names import require_other
from server.engine.loading.video_geometry import PATCHES
from server.engine.loading.weights import check_state_dict
from server.errors import ConfigError

log = logging.getLogger("tome.engine")

StateDict = dict[str, Tensor]

_POSITIONS = "pos_embed"
# Of V-JEPA 2.1, whose rotary positions are others.
_SUCCESSOR = ("video_mod_embed", "img_mod_embed", "norms_block.", "patch_embed_img.")


def load_vjepa2_model(spec: ModelSpec, path: Path, classes: int | None) -> Any:
    """Return the timm model of an entry of V-JEPA 2, with the weights of a file.

    The authors' names are timm's. The file decides whether there is a classifier; the architecture
    and the entry decide about frames and their size, which do not show in a file.

    Args:
        spec: the entry.
        path: of the file.
        classes: number of labels; None if there are none.

    Raises:
        ConfigError: the file cannot be served; the message says why.
    """
    tensors = read_checkpoint(path, spec.prefix)
    require_other(tensors, path)
    _check_kind(path, tensors)
    if tensors.pop(_POSITIONS, None) is not None:
        log.warning(
            "%s: left out %s, which V-JEPA 2 does not read; if the file is of the first V-JEPA, its"
            " results are wrong",
            path,
            _POSITIONS,
        )
    vit = create_timm_model(spec, count_classes(tensors, classes), pretrained=False)
    check_state_dict(vit, tensors, path, {})
    vit.load_state_dict(tensors)
    return vit


def _check_kind(path: Path, tensors: StateDict) -> None:
    """Raise `ConfigError` for a file that holds no encoder of V-JEPA 2."""
    successor = next((key for key in tensors if key.startswith(_SUCCESSOR)), None)
    if successor is not None:
        raise ConfigError(
            f"{path} is a V-JEPA 2.1 ({successor}), which is not supported: its positions are"
            " scaled to the clip, and images have patches of their own"
        )
    if PATCHES not in tensors:
        raise ConfigError(
            f"{path} holds no V-JEPA 2: it has {next(iter(tensors), 'nothing')}, but no embedding"
            " of tubelets; docs/checkpoints.md lists the formats that load"
        )
