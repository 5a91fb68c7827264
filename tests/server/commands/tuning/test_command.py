"""The command measures generated pictures, is interrupted, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from server.catalog.profiles import read_profile
from server.commands.tuning import measurement, state
from server.commands.tuning.pictures import PictureBatch
from server.commands.tuning.pictures import picture_batches as real_batches
from tests.server.commands.conftest import Run

BROKEN = "b/broken.png"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures of noise, and one that is none."""
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    for number in range(8):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / BROKEN).write_bytes(b"no picture")
    return folder


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the measurement of each rule begins."""
    begun: list[int] = []

    def record(transform: Any, pictures: Any, start: int, size: int) -> Iterator[PictureBatch]:
        begun.append(start)
        return real_batches(transform, pictures, start, size)

    monkeypatch.setattr(measurement, "picture_batches", record)
    return begun


def interrupt_second_batch(*arguments: Any) -> Iterator[PictureBatch]:
    """As Ctrl-C does it."""
    yield next(real_batches(*arguments))
    raise KeyboardInterrupt


def quality(path: Path) -> list[tuple[object, ...]]:
    """What does not depend on the machine's speed."""
    rows = [
        (row.r, row.merging, row.prop_attn, row.agreement, row.agreement_low, row.cosine)
        for row in read_profile(path)
    ]
    return sorted(rows, key=str)


def test_it_goes_on_where_it_was_interrupted(
    tome_serve: Run,
    tiny_folder: Path,
    pictures: Path,
    starts: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = tmp_path / "p.json"
    partial = tmp_path / "p.json.partial"
    command = ["tune", "tiny", str(pictures), "--config", str(tiny_folder / "models.toml")]
    command += ["--dtype=float32", "--batch=3", "--r=2 4:-1", "--profile", str(profile)]
    # The state is written after each batch.
    monkeypatch.setattr(state, "SAVE_SECONDS", 0)
    monkeypatch.setattr(state, "_SHARE_OF_WRITING", 0)
    with monkeypatch.context() as patched:
        patched.setattr(measurement, "picture_batches", interrupt_second_batch)
        interrupted = tome_serve(*command)
    assert interrupted.returncode == 130
    assert f"{partial} keeps what was measured: the same command goes on" in interrupted.stderr
    assert not profile.exists()
    left = partial.read_text()
    assert json.loads(left)["rules"][0]["record"]["read"] == 3

    elsewhere = json.loads(left)
    elsewhere["conditions"]["device"] = "another"
    partial.write_text(json.dumps(elsewhere))
    refused = tome_serve(*command)
    assert refused.returncode == 1
    assert "has speeds of device another" in refused.stderr
    partial.write_text(left)

    plot = tmp_path / "plot.png"
    resumed = tome_serve(*command, "--plot", str(plot))
    assert resumed.returncode == 0, resumed.stderr
    assert starts == [3, 0, 0, 0]
    assert "going on from" in resumed.stderr
    assert f"passed over {BROKEN}" in resumed.stdout
    assert f'profile = "{profile}"' in resumed.stdout
    assert "8 pictures cannot show that 99.9% keep the class of r=0" in resumed.stdout
    assert not partial.exists()
    assert plot.stat().st_size > 0
    written = json.loads(profile.read_text())
    assert (written["images"], written["unreadable"], written["dtype"]) == (8, 1, "float32")
    rows = read_profile(profile)
    rules = {(row.merging, row.prop_attn) for row in rows}
    # Two full batches are too few for another rule than that of the entry, whatever their speed.
    assert rules == {("paper", True), ("pairs", True), ("nearest", True), ("paper", False)}
    assert len(rows) == 12
    assert written["recommended"] == {"merging": "paper", "prop_attn": True}
    assert (rows[0].merging, rows[0].prop_attn) == ("paper", True)
    for row in rows:
        assert row.accuracy is None
        assert row.agreement is not None
        assert row.agreement_low is not None
        assert row.cosine is not None
        assert row.agreement_low <= row.agreement
        assert row.speedup > 0
        if row.r == "0":
            assert (row.agreement_low, row.cosine, row.margin) == (100, 1, None)
        else:
            assert row.margin is not None

    # In one go it finds the same.
    other = tmp_path / "other.json"
    fresh = tome_serve(*command, "--profile", str(other), "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert quality(other) == quality(profile)


def test_a_model_without_a_classifier_has_cosines_alone(
    tome_serve: Run, tiny_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    entry = (tiny_folder / "models.toml").read_text()
    weights = load_file(tiny_folder / "tiny.safetensors")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    save_file(body, tmp_path / "tiny.safetensors")
    config = tmp_path / "models.toml"
    config.write_text(entry.replace('labels = "labels.txt"', "num_classes = 0"))
    profile = tmp_path / "p.json"
    flags = ["--config", str(config), "--dtype=float32", "--r=4", "--profile", str(profile)]
    result = tome_serve("tune", "tiny", str(pictures), *flags)
    assert result.returncode == 0, result.stderr
    assert "cosine of patches" in result.stdout
    for row in read_profile(profile):
        assert (row.agreement, row.margin) == (None, None)
        assert row.cosine is not None
        assert row.dense_cosine is not None
        exact = row.r == "0"
        assert (row.cosine == 1, row.dense_cosine == 1) == (exact, exact)


def test_without_one_readable_picture_nothing_is_written(
    tome_serve: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_SECONDS", 0)
    monkeypatch.setattr(state, "_SHARE_OF_WRITING", 0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no picture")
    profile = tmp_path / "p.json"
    flags = ["--config", str(tiny_folder / "models.toml"), "--dtype=float32", "--r=4"]
    # The second run finds what the first has left.
    for _ in range(2):
        result = tome_serve("tune", "tiny", str(folder), *flags, "--profile", str(profile))
        assert result.returncode == 1
        assert "no picture in pictures can be read; of broken.png" in result.stderr
        assert not profile.exists()
