"""The commands on sounds, with a tiny model of random weights."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.server.commands.conftest import Run
from tests.server.tiny_ear import LABELS, sound, write_models


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_models(tmp_path_factory.mktemp("models")))


@pytest.fixture
def ear(config: str) -> tuple[str, ...]:
    """The flags of the model of sound."""
    return ("--config", config, "--model", "ear")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sound of three windows, the last of which overlaps the second."""
    path = tmp_path_factory.mktemp("sounds") / "clip.wav"
    path.write_bytes(sound(3.5, rate=44_100))
    return str(path)


def classified(tome_serve: Run, *arguments: str) -> dict:
    result = tome_serve("classify", *arguments, "--json", "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def scores(answer: dict) -> np.ndarray:
    """Return the scores of all classes in their order."""
    by_index = {each["index"]: each["score"] for each in answer["predictions"]}
    return np.array([by_index[index] for index in range(len(LABELS))])


def test_classify_averages_the_windows(tome_serve: Run, ear: tuple[str, ...], clip: str) -> None:
    each = classified(tome_serve, clip, *ear, "--windows", "each", "--r", "2")
    assert (each["model"], each["modality"], each["r"]) == ("ear", "audio", "2")
    assert each["media"] == {"seconds": 3.5, "sample_rate": 44_100, "channels": 1}
    assert each["tokens"] == {"input": 66, "output": 62}
    starts = [window["start"] for window in each["windows"]]
    assert starts == pytest.approx([0, 1.28, 2.2], abs=0.03)
    assert each["windows"][-1]["end"] == pytest.approx(3.5, abs=0.01)
    by_window = np.stack([scores(window) for window in each["windows"]])
    assert np.ptp(by_window, axis=0).max() > 1e-4
    np.testing.assert_allclose(scores(each), by_window.mean(axis=0), atol=1e-6)
    mean = classified(tome_serve, clip, *ear, "--r", "2")
    assert mean["predictions"] == each["predictions"]
    assert "windows" not in mean
    first = classified(tome_serve, clip, *ear, "--r", "2", "--windows", "first")
    np.testing.assert_allclose(scores(first), by_window[0], atol=1e-6)


def test_classify_prints_each_window(tome_serve: Run, ear: tuple[str, ...], clip: str) -> None:
    result = tome_serve("classify", clip, *ear, "--windows", "each", "--top-k", "1")
    best, *windows, tokens = result.stdout.splitlines()
    assert best.split()[1] in LABELS
    assert [line.split()[2] for line in windows] == ["from"] * 3
    assert " from 0.00 to 1.2" in windows[0]
    assert tokens == "r=0: 66 of 66 tokens left"


def test_visualize_draws_the_spectrogram(
    tome_serve: Run, ear: tuple[str, ...], tmp_path: Path
) -> None:
    tone = tmp_path / "tone.wav"
    tone.write_bytes(low_tone())
    picture = tmp_path / "out.png"
    result = tome_serve("visualize", str(tone), *ear, "--r", "8", "-o", str(picture))
    assert result.stdout == f"{picture}: r=8: 50 of 66 tokens left\n"
    with Image.open(picture) as image:
        rows = np.asarray(image.convert("L"), np.float64).mean(axis=1)
    upper, lower = np.split(rows, 2)
    assert lower.mean() > upper.mean() + 20  # low frequencies are below


def low_tone() -> bytes:
    """A WAV of two seconds of 300 Hz."""
    samples = [round(20_000 * math.sin(2 * math.pi * 300 * n / 16_000)) for n in range(32_000)]
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return file.getvalue()


def test_evaluate_measures_over_a_folder_of_sounds(
    tome_serve: Run, ear: tuple[str, ...], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for seed, label in enumerate(LABELS):
        (data / label).mkdir(parents=True)
        for seconds in (0.5, 3):
            (data / label / f"{seconds}.wav").write_bytes(sound(seconds, seed))
    (data / "bark" / "picture.png").write_bytes(b"no sound")
    profile = tmp_path / "profile.json"
    flags = ["--dtype", "float32", "--batch=2", "--profile", str(profile)]
    result = tome_serve("evaluate", str(data), *ear, *flags)
    assert result.returncode == 0, result.stderr
    assert "ear by paper on 6 sounds of data, cpu" in result.stdout
    assert "windows/s" in result.stdout
    written = json.loads(profile.read_text())
    assert written["sounds"] == 6
    assert [row["r"] for row in written["levels"]] == ["0", "1", "3", "4", "5"]  # the model's
    for row in written["levels"]:
        assert 0 <= row["accuracy_low"] < row["accuracy_high"] <= 100
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    right = 0
    for label in LABELS:
        for file in sorted((data / label).glob("*.wav")):
            answer = classified(tome_serve, str(file), *ear)
            right += answer["predictions"][0]["label"] == label
    assert written["levels"][0]["accuracy"] == pytest.approx(100 * right / 6, abs=0.001)


def test_models_lists_the_levels_of_each(tome_serve: Run, config: str) -> None:
    output = tome_serve("models", "--config", config).stdout
    (images,) = [line for line in output.splitlines() if " tiny " in line]
    (sounds,) = [line for line in output.splitlines() if " ear " in line]
    assert "image" in images and "3x32x32" in images
    assert "audio" in sounds and "1x128x128" in sounds and "66, 100%" in sounds
    assert "r=5" in output  # 8% of the tokens


def test_a_sound_is_no_image_and_an_image_no_sound(
    tome_serve: Run, config: str, ear: tuple[str, ...], clip: str
) -> None:
    result = tome_serve("classify", "examples/bag.png", *ear)
    assert result.returncode == 1
    assert "examples/bag.png: the body is" in result.stderr
    assert "allowed are WAV, FLAC, OGG (Vorbis, Opus) and MP3" in result.stderr
    result = tome_serve("classify", clip, "--config", config)
    assert result.returncode == 1
    assert f"{clip}: the body is a sound (WAV); the model takes images: allowed" in result.stderr
    result = tome_serve("classify", "examples/bag.png", "--config", config, "--windows", "each")
    assert result.returncode == 1
    assert "model tiny takes images, which have no windows" in result.stderr
    result = tome_serve("evaluate", *ear)
    assert result.returncode == 1
    assert "name a folder of sounds" in result.stderr


@pytest.mark.parametrize("command", ["classify", "evaluate"])
def test_without_soundfile_the_command_that_installs_it_is_named(
    tome_serve: Run,
    ear: tuple[str, ...],
    clip: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)  # as if it were not installed
    data = clip if command == "classify" else str(Path(clip).parent)
    result = tome_serve(command, data, *ear)
    assert result.returncode == 1
    assert "pip install 'tome-serve[audio]'" in result.stderr
