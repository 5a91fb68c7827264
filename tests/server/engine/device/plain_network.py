"""The plain network of the tiny model."""

from __future__ import annotations

from pathlib import Path

import tome_core
from server.catalog.entries import read_catalog
from server.engine.loading.timm_models import create_timm_model
from server.engine.loading.weights import load_weights


def load_plain(folder: Path) -> tome_core.MergedViT:
    (spec,) = read_catalog(folder / "models.toml", ())
    vit = create_timm_model(spec, 3, pretrained=False)
    assert spec.checkpoint is not None
    load_weights(vit, spec.checkpoint)
    return tome_core.patch(vit.eval())
