"""What is sent comes from files, folders, the examples, or generators."""

from __future__ import annotations

import array
import io
import wave
from pathlib import Path

import pytest
from PIL import Image

from server.errors import ConfigError
from server.media.modality import Modality
from tome_load import uploads
from tome_load.pictures import generate_jpeg
from tome_load.sounds import SECONDS, generate_wavs
from tome_load.uploads import read_uploads


def test_files_folders_and_examples_are_read(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.avif", "._a.jpg", "notes.txt", "d.wav"):
        (tmp_path / name).write_bytes(name.encode())
    names = [upload.name for upload in read_uploads([tmp_path])]
    assert names == ["a.jpg", "b.PNG", "c.avif"]
    (notes,) = read_uploads([tmp_path / "notes.txt"])  # a file need not be an image
    assert notes.content == b"notes.txt"
    assert "sneaker.jpg" in [upload.name for upload in read_uploads([])]
    with pytest.raises(ConfigError, match="cannot read"):
        read_uploads([tmp_path / "none.png"])


def test_of_a_folder_only_what_the_model_takes_is_read(tmp_path: Path) -> None:
    for name in ("b.OPUS", "a.flac", "c.png", "._a.wav"):
        (tmp_path / name).write_bytes(b"")
    names = [upload.name for upload in read_uploads([tmp_path], Modality.AUDIO)]
    assert names == ["a.flac", "b.OPUS"]
    (tmp_path / "d.MKV").write_bytes(b"")
    (video,) = read_uploads([tmp_path], Modality.VIDEO)
    assert video.name == "d.MKV"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no sound file"):
        read_uploads([tmp_path / "empty"], Modality.AUDIO)
    with pytest.raises(ConfigError, match="empty holds no video file"):
        read_uploads([tmp_path / "empty"], Modality.VIDEO)
    with pytest.raises(ConfigError, match="empty holds no image file"):
        read_uploads([tmp_path / "empty"])


def test_without_examples_an_image_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "EXAMPLES", tmp_path / "none")
    (upload,) = read_uploads([])
    assert upload.content == generate_jpeg()
    with Image.open(io.BytesIO(upload.content)) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))
        assert len(image.getcolors(1 << 18) or ()) > 1000


def test_without_examples_sounds_are_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "EXAMPLES", tmp_path)
    sounds = read_uploads([], Modality.AUDIO)
    assert {sound.name: sound.content for sound in sounds} == generate_wavs()
    for sound, seconds in zip(sounds, SECONDS, strict=True):
        with wave.open(io.BytesIO(sound.content)) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
            assert file.getnframes() == seconds * 16_000
            samples = array.array("h", file.readframes(file.getnframes()))
        assert len(set(samples)) > 1000
        assert max(samples) < 32_767  # nothing is clipped


def test_without_examples_videos_are_those_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = read_uploads([], Modality.VIDEO)
    assert "rabbit.mp4" in [video.name for video in examples]
    monkeypatch.setattr(uploads, "EXAMPLES", tmp_path / "none")
    assert read_uploads([], Modality.VIDEO) == examples
