"""The commands on videos, with a tiny model of random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av")

from server.commands.datasets import open_dataset
from server.commands.labelled_batches import batches
from server.media.modality import Modality
from server.media.transforms import VideoTransform
from tests.server.commands.conftest import Run
from tests.server.tiny_clip import LABELS, TOKENS, write_models

RABBIT = "examples/rabbit.mp4"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_models(tmp_path_factory.mktemp("models")))


@pytest.fixture
def clip(config: str) -> tuple[str, ...]:
    """The flags of the model of video."""
    return ("--config", config, "--model", "clip")


def classified(tome_serve: Run, *arguments: str) -> dict:
    result = tome_serve("classify", RABBIT, *arguments, "--json", "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def scores(answer: dict) -> np.ndarray:
    """Return the scores of all classes in their order."""
    by_index = {each["index"]: each["score"] for each in answer["predictions"]}
    return np.array([by_index[index] for index in range(len(LABELS))])


def test_classify_averages_clips_and_crops(tome_serve: Run, clip: tuple[str, ...]) -> None:
    views = ("--clips", "2", "--crops", "3", "--r", "4")
    each = classified(tome_serve, *clip, *views, "--windows", "each")
    assert (each["model"], each["modality"], each["r"]) == ("clip", "video", "4")
    assert each["media"] == {
        "seconds": 4.0,
        "frames": 100,
        "frame_rate": 25.0,
        "width": 320,
        "height": 180,
        "codec": "h264",
    }
    assert each["tokens"] == {"input": TOKENS, "output": TOKENS - 8}
    places = [(window["start"], window["crop"]) for window in each["windows"]]
    assert places == [(0, 0), (0, 1), (0, 2), (3.36, 0), (3.36, 1), (3.36, 2)]
    by_window = np.stack([scores(window) for window in each["windows"]])
    assert np.ptp(by_window, axis=0).max() > 1e-4
    np.testing.assert_allclose(scores(each), by_window.mean(axis=0), atol=1e-6)
    first = classified(tome_serve, *clip, *views, "--windows", "first")
    np.testing.assert_allclose(scores(first), by_window[0], atol=1e-6)
    assert "windows" not in first


def test_classify_prints_each_window(tome_serve: Run, clip: tuple[str, ...]) -> None:
    result = tome_serve("classify", RABBIT, *clip, "--windows=each", "--crops=3", "--top-k=1")
    best, *windows, tokens = result.stdout.splitlines()
    assert best.split()[1] in LABELS
    assert [line.partition(" from ")[2] for line in windows] == [
        f"1.68 to 2.28 s, crop {crop}" for crop in range(3)
    ]
    assert tokens == f"r=0: {TOKENS} of {TOKENS} tokens left"


def test_visualize_draws_a_contact_sheet(
    tome_serve: Run, clip: tuple[str, ...], tmp_path: Path
) -> None:
    picture = tmp_path / "out.png"
    result = tome_serve("visualize", RABBIT, *clip, "--r", "8", "-o", str(picture))
    assert result.stdout == f"{picture}: r=8: {TOKENS - 16} of {TOKENS} tokens left\n"
    with Image.open(picture) as image:
        assert image.size == (4 * 128 + 3 * 4, 128)


def test_evaluate_measures_over_a_folder_of_videos(
    tome_serve: Run, clip: tuple[str, ...], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for label in LABELS:
        (data / label).mkdir(parents=True)
        shutil.copy(RABBIT, data / label)
    (data / "up" / "picture.png").write_bytes(b"no video")
    profile = tmp_path / "profile.json"
    flags = ["--dtype", "float32", "--batch=4", "--crops=3", "--profile", str(profile)]
    result = tome_serve("evaluate", str(data), *clip, *flags)
    assert result.returncode == 0, result.stderr
    assert "clip by paper on 5 videos of data, cpu" in result.stdout
    assert "windows/s" in result.stdout
    written = json.loads(profile.read_text())
    assert (written["videos"], written["clips"], written["crops"]) == (5, 1, 3)
    # The same video in each of the five classes: one of them is right.
    assert {row["accuracy"] for row in written["levels"]} == {20}


def test_models_lists_the_frames_of_a_clip(tome_serve: Run, config: str) -> None:
    output = tome_serve("models", "--config", config).stdout
    (line,) = [line for line in output.splitlines() if " clip " in line]
    assert "video" in line and "8x3x32x32" in line and f"{TOKENS}, 100%" in line


def test_check_knows_architectures_of_video(tome_serve: Run) -> None:
    result = tome_serve("models", "--check", "video_vit_base_patch16")
    assert "supported (VideoViT, 1568 tokens, r from 0 to 784)" in result.stdout


def test_what_is_no_video_is_refused(tome_serve: Run, config: str, clip: tuple[str, ...]) -> None:
    result = tome_serve("classify", "examples/bag.png", *clip)
    assert result.returncode == 1
    assert "the body is an image (PNG); the model takes videos: allowed are" in result.stderr
    result = tome_serve("classify", RABBIT, "--config", config)
    assert result.returncode == 1
    assert "the body is a video (MP4); the model takes images: allowed are" in result.stderr
    result = tome_serve("classify", "examples/bag.png", "--config", config, "--clips=2")
    assert result.returncode == 1
    assert "model tiny takes images: clips is a field of video" in result.stderr
    result = tome_serve("evaluate", *clip)
    assert result.returncode == 1
    assert "the model takes videos: name a folder of videos, <class>/<video>" in result.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--crops=2", "crops: Input should be 1 or 3"),
        ("--crops=many", "crops: Input should be 1 or 3"),
        ("--clips=0", "clips: Input should be greater than or equal to 1"),
    ],
)
def test_other_clips_and_crops_are_refused(tome_serve: Run, flag: str, message: str) -> None:
    result = tome_serve("classify", RABBIT, flag)
    assert result.returncode == 1
    assert message in result.stderr


def test_more_windows_than_a_server_takes_are_refused(
    tome_serve: Run, clip: tuple[str, ...]
) -> None:
    result = tome_serve("classify", RABBIT, *clip, "--clips=16", "--crops=3")
    assert result.returncode == 1
    assert "48" in result.stderr


def test_batches_hold_the_windows_of_each_file_in_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(RABBIT, tmp_path / name)
    data = open_dataset(tmp_path, modality=Modality.VIDEO)
    transform = VideoTransform(2, 1, 16, 16, resize=16, clips=9, crops=3)
    parts = list(batches(transform, data, [5, 7], size=20))
    assert [len(part.inputs) for part in parts] == [20, 20, 14]
    assert parts[0].inputs.shape == (20, 3, 32, 16)
    items = np.concatenate([part.items for part in parts])
    np.testing.assert_array_equal(items, [0] * 27 + [1] * 27)
    labels = np.concatenate([part.labels for part in parts])
    np.testing.assert_array_equal(labels, [5] * 27 + [7] * 27)
