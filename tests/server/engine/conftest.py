"""The tiny model on disk, loaded once."""

from pathlib import Path

import pytest
import torch

from server.catalog import read_catalog
from server.engine.loading import LoadedModel, load_model
from server.engine.runner import Runner
from tests.server.engine.tiny import write_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny")).parent


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    (spec,) = read_catalog(tiny_folder / "models.toml", ())
    return load_model(spec, torch.device("cpu"), torch.float32)


@pytest.fixture
def runner(tiny: LoadedModel) -> Runner:
    return Runner(tiny, torch.device("cpu"))
