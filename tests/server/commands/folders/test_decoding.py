"""Pictures come in their order, ahead of their use; what is no picture has a reason."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from server.commands.folders import decoding
from server.commands.folders.decoding import ParallelDecoder, Unreadable, read_picture
from server.commands.inputs import read_inputs
from server.media.transforms import ImageTransform

TRANSFORM = ImageTransform((1, 2, 2), "nearest", 1.0, "squash")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{shade:02}.png" for shade in range(20)]
    for shade, file in enumerate(files):
        Image.new("L", (2, 2), shade).save(file)
    files[3].write_bytes(b"no picture")
    return list(map(str, files))


@pytest.mark.parametrize("ahead", [1, 4, 100])
def test_pictures_come_in_order(paths: list[str], ahead: int) -> None:
    with ParallelDecoder(TRANSFORM, 3, ahead, pauses=True) as decoder:
        found = list(decoder.decode(paths))
    shades = [None if each.pixels is None else int(each.pixels[0, 0, 0]) for each in found]
    assert shades == [0, 1, 2, None, *range(4, 20)]
    assert "not an image of a supported format" in found[3].reason


def test_no_more_paths_are_taken_than_may_be_ahead(paths: list[str]) -> None:
    taken: list[str] = []

    def take():
        for path in paths:
            taken.append(path)
            yield path

    with ParallelDecoder(TRANSFORM, 2, 5, pauses=False) as decoder:
        pictures = decoder.decode(take())
        next(pictures)
        assert len(taken) == 5
        next(pictures)
        assert len(taken) == 6


@pytest.mark.parametrize("pauses", [False, True])
def test_none_is_decoded_during_a_pause(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, pauses: bool
) -> None:
    read = threading.Semaphore(0)
    decoded = threading.Semaphore(0)

    def record_reading(path: str) -> bytes:
        read.release()
        return read_picture(path)

    def record_decoding(*arguments):
        decoded.release()
        return read_inputs(*arguments)

    monkeypatch.setattr(decoding, "read_picture", record_reading)
    monkeypatch.setattr(decoding, "read_inputs", record_decoding)
    with ParallelDecoder(TRANSFORM, 1, 2, pauses=pauses) as decoder:
        waits = threading.Thread(target=lambda: list(decoder.decode(paths[:1])))
        with decoder.paused():
            waits.start()
            assert read.acquire(timeout=60)
            # What does not happen cannot be waited for: a moment, in which it would.
            assert decoded.acquire(timeout=0.2 if pauses else 60) is not pauses
        assert not pauses or decoded.acquire(timeout=60)
        waits.join(60)


def test_an_error_during_a_pause_ends_the_threads(paths: list[str]) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ParallelDecoder(TRANSFORM, 2, 4, pauses=True) as decoder,
    ):
        next(decoder.decode(paths))
        with decoder.paused():
            raise KeyboardInterrupt


def test_what_is_no_regular_file_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(11))
    monkeypatch.setattr(decoding, "_MAX_FILE_BYTES", 10)
    reasons = {
        empty: "it is empty",
        pipe: "it is not a file",
        large: "it has 11 bytes; allowed are 10",
        tmp_path: "cannot be read: Is a directory",
        tmp_path / "none.png": "cannot be read: No such file or directory",
        tmp_path / "a\nb.png": "its name is not UTF-8 or has a line break; rename it",
        tmp_path / os.fsdecode(b"\xff.png"): "its name is not UTF-8 or has a line break",
    }
    gc.collect()  # what other tests have left
    descriptors = len(os.listdir("/proc/self/fd"))
    for path, reason in reasons.items():
        with pytest.raises(Unreadable, match=reason):
            read_picture(str(path))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
