"""``tome-serve evaluate --task embed`` on generated pictures, against features computed here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.catalog.profiles import read_profile, weights_digest, write_profile
from server.commands.offline import load_runner, pick_model
from server.settings import ModelSettings
from tests.server.commands.conftest import Run
from tome_core.schedule import Schedule

PICTURES = 20
RULES = ("paper", "pairs")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of noise in nested folders, without labels; the last file is none."""
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    (folder / "b" / "broken.png").write_bytes(b"no picture")
    return folder


def pixels(folder: Path) -> np.ndarray:
    files = sorted(path for path in folder.glob("*/*.png") if path.stem != "broken")
    return np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])


def test_it_measures_cosines_and_neighbours_by_level_and_rule(
    tome_serve: Run, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    config = tiny_folder / "models.toml"
    profile, plot = tmp_path / "p.json", tmp_path / "plot.png"
    command = ["evaluate", str(folder), "--task=embed", "--config", str(config), "--batch=6"]
    command += ["--dtype=float32", "--r=4 6:-1", "--merging", " ".join(RULES)]
    result = tome_serve(*command, "--profile", str(profile), "--plot", str(plot))
    assert result.returncode == 0, result.stderr
    assert "passed over b/broken.png" in result.stdout
    for rule in RULES:
        assert f"tiny by {rule} on 20 pictures of pictures, cpu" in result.stdout
    assert re.search(r"recall@10, %", result.stdout)
    assert plot.stat().st_size > 0

    written = json.loads(profile.read_text())
    assert written["weights"] == weights_digest(tiny_folder / "tiny.safetensors")
    embeddings = written["embeddings"]
    assert (embeddings["images"], embeddings["unreadable"], embeddings["batch"]) == (20, 1, 6)
    rows = read_profile(profile)
    assert [(row.merging, row.r) for row in rows] == [
        (rule, r) for rule in RULES for r in ("0", "4", "6:-1")
    ]
    settings = ModelSettings(config=config, dtype="float32", threads=1)
    spec = pick_model(settings, "")
    inputs = pixels(folder)
    for row in rows:
        assert row.merging is not None
        runner = load_runner(settings, spec.model_copy(update={"merging": row.merging}))
        features, exact = (
            runner.outputs(inputs, [Schedule.parse(r)] * PICTURES).features.numpy()
            for r in (row.r, "0")
        )
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(exact, axis=1)
        cosines = (features * exact).sum(axis=1) / lengths
        assert row.cosine == pytest.approx(cosines.mean(), abs=2e-5)
        assert row.cosine_p1 == pytest.approx(np.percentile(cosines, 1), abs=2e-5)
        assert row.cosine_p5 == pytest.approx(np.percentile(cosines, 5), abs=2e-5)
        assert row.cosine is not None
        assert row.cosine_low is not None
        assert row.cosine_low <= row.cosine
        assert row.speedup > 0
        if row.r == "0":
            assert (row.cosine_low, row.recall_1, row.mixed_recall_10) == (1, 100, 100)
        else:
            assert row.recall_10 is not None
            assert 0 < row.recall_10 <= 100
            assert row.mixed_recall_1 is not None
        assert row.accuracy is None


def test_it_is_added_to_a_profile_of_the_same_weights_alone(
    tome_serve: Run, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "p.json"
    flags = ["--config", str(tiny_folder / "models.toml"), "--dtype=float32", "--r=4"]
    command = ["evaluate", str(folder), "--task=embed", *flags, "--profile", str(profile)]
    write_profile(profile, [], {"model": "tiny", "weights": "others"})
    refused = tome_serve(*command)
    assert refused.returncode == 1
    assert "of another model or other weights; name another --profile" in refused.stderr
    profile.unlink()
    assert tome_serve(*command).returncode == 0
    # `tune` would lose the neighbours.
    tuned = tome_serve("tune", "tiny", str(folder), *flags, "--profile", str(profile))
    assert tuned.returncode == 1
    assert "has recalls of neighbours that tome-serve evaluate measured" in tuned.stderr


def test_a_folder_without_readable_pictures_is_an_error(
    tome_serve: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    flags = ["--task=embed", "--config", str(tiny_folder / "models.toml"), "--r=4"]
    result = tome_serve("evaluate", str(tmp_path), *flags)
    assert result.returncode == 1
    assert "can be read; of broken.png" in result.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    result = tome_serve("evaluate", str(empty), *flags)
    assert result.returncode == 1
    assert "holds no picture" in result.stderr


def test_a_model_of_sound_is_refused(tome_serve: Run, folder: Path) -> None:
    flags = ["--task=embed", "--models=spoken-language"]
    result = tome_serve("evaluate", str(folder), *flags)
    assert result.returncode == 1
    assert "--task embed measures models of pictures" in result.stderr
