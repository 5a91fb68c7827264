"""The tiny model, loaded once, and a runner of it."""

from pathlib import Path

import pytest
import torch

from server.catalog.entries import read_catalog
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel, load_model


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    (spec,) = read_catalog(tiny_folder / "models.toml", ())
    return load_model(spec, torch.device("cpu"), torch.float32)


@pytest.fixture
def runner(tiny: LoadedModel) -> Runner:
    return Runner(tiny, torch.device("cpu"))
