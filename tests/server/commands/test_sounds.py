"""The commands on sounds, with a tiny model of random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.server.commands.test_cli import Run, tome_serve
from tests.server.tiny_sound import LABELS, make_wav, write_ast

__all__ = ["tome_serve"]  # a fixture


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_ast(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sound of three windows, the last of which overlaps the second."""
    path = tmp_path_factory.mktemp("sounds") / "clip.wav"
    path.write_bytes(make_wav(3.5, rate=44_100, channels=2))
    return str(path)


def classified(tome_serve: Run, *arguments: str) -> dict:
    result = tome_serve("classify", *arguments, "--json", "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def scores(answer: dict) -> np.ndarray:
    """Return the scores of all classes in their order."""
    by_index = {each["index"]: each["score"] for each in answer["predictions"]}
    return np.array([by_index[index] for index in range(len(LABELS))])


def test_classify_averages_the_windows(tome_serve: Run, config: str, clip: str) -> None:
    each = classified(tome_serve, clip, "--config", config, "--windows", "each", "--r", "2")
    assert (each["model"], each["modality"], each["r"]) == ("sounds", "audio", "2")
    assert each["media"] == {"seconds": 3.5, "sample_rate": 44_100, "channels": 2}
    assert each["tokens"] == {"input": 66, "output": 62}
    assert [window["start"] for window in each["windows"]] == pytest.approx(
        [0, 1.28, 2.2], abs=0.03
    )
    assert each["windows"][-1]["end"] == pytest.approx(3.5, abs=0.01)
    by_window = np.stack([scores(window) for window in each["windows"]])
    assert np.ptp(by_window, axis=0).max() > 1e-4
    np.testing.assert_allclose(scores(each), by_window.mean(axis=0), atol=1e-6)
    mean = classified(tome_serve, clip, "--config", config, "--r", "2")
    assert mean["predictions"] == each["predictions"]
    assert "windows" not in mean
    first = classified(tome_serve, clip, "--config", config, "--r", "2", "--windows", "first")
    np.testing.assert_allclose(scores(first), by_window[0], atol=1e-6)


def test_classify_prints_each_window(tome_serve: Run, config: str, clip: str) -> None:
    arguments = ["--config", config, "--windows", "each", "--top-k", "1"]
    lines = tome_serve("classify", clip, *arguments).stdout.splitlines()
    assert len(lines) == 5
    assert lines[1].endswith(" from 0.00 to 1.29 s") or lines[1].endswith(" from 0.00 to 1.28 s")
    assert lines[-1] == "r=0: 66 of 66 tokens left"


def test_visualize_draws_the_spectrogram(
    tome_serve: Run, config: str, clip: str, tmp_path: Path
) -> None:
    picture = tmp_path / "out.png"
    result = tome_serve("visualize", clip, "--config", config, "--r", "8", "-o", str(picture))
    assert result.stdout == f"{picture}: r=8: 50 of 66 tokens left\n"
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"), np.float64)
    # The tone of 440 Hz is the loudest, and low frequencies are below.
    rows = pixels.mean(axis=1)
    assert rows.argmax() > len(rows) / 2


def test_evaluate_measures_over_a_folder_of_sounds(
    tome_serve: Run, config: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for label, hertz in zip(LABELS.values(), (200, 1000, 3000), strict=True):
        (data / label).mkdir(parents=True)
        for seconds in (0.5, 3):
            (data / label / f"{seconds}.wav").write_bytes(make_wav(seconds, hertz))
    (data / "low" / "picture.png").write_bytes(b"no sound")
    profile = tmp_path / "profile.json"
    arguments = ["--config", config, "--r=8", "--batch=2", "--profile", str(profile)]
    result = tome_serve("evaluate", str(data), *arguments)
    assert result.returncode == 0, result.stderr
    assert "sounds on 6 sounds of data, cpu" in result.stdout
    assert "windows/s" in result.stdout
    written = json.loads(profile.read_text())
    assert written["sounds"] == 6
    assert [row["r"] for row in written["levels"]] == ["0", "8"]
    # The same as one by one.
    right = 0
    for label in LABELS.values():
        for file in sorted((data / label).glob("*.wav")):
            answer = classified(tome_serve, str(file), "--config", config)
            right += answer["predictions"][0]["label"] == label
    assert written["levels"][0]["accuracy"] == pytest.approx(100 * right / 6, abs=0.001)


def test_models_lists_the_levels_of_each(tome_serve: Run, config: str, tmp_path: Path) -> None:
    output = tome_serve("models", "--config", config).stdout
    assert "audio" in output and "1x128x128" in output
    assert "66, 100%" in output
    assert "r=5" in output  # 8 % of the tokens


def test_what_the_model_does_not_take_is_named(tome_serve: Run, config: str, clip: str) -> None:
    result = tome_serve("classify", "examples/bag.png", "--config", config)
    assert result.returncode == 1
    assert "examples/bag.png: the body is" in result.stderr
    assert "allowed are WAV, FLAC, OGG (Vorbis, Opus) and MP3" in result.stderr
    result = tome_serve("classify", clip)
    assert result.returncode == 1
    assert f"{clip}: the body is a WAV sound, and the model takes images" in result.stderr
    result = tome_serve("classify", "examples/bag.png", "--windows", "each")
    assert result.returncode == 1
    assert "model fashion-mnist takes images, which have no windows" in result.stderr
    result = tome_serve("evaluate", "--config", config)
    assert result.returncode == 1
    assert "name a folder of sounds" in result.stderr


@pytest.mark.parametrize("command", ["classify", "evaluate"])
def test_without_soundfile_the_command_that_installs_it_is_named(
    tome_serve: Run, config: str, clip: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)  # as if it were not installed
    data = clip if command == "classify" else str(Path(clip).parent)
    result = tome_serve(command, data, "--config", config)
    assert result.returncode == 1
    assert "pip install 'tome-serve[audio]'" in result.stderr
