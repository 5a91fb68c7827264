"""Pictures are found at any depth, spread by a limit, and passed over where they are broken."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.commands.tuning.pictures import open_pictures, picture_batches
from server.errors import ConfigError
from server.media.transforms import ImageTransform

TRANSFORM = ImageTransform((1, 2, 2), "nearest", 1.0, "squash")


def write(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2), shade).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shade, name in enumerate(("a.png", "b.png", "in/c.png", "in/deep/d.png", "out/e.png")):
        write(tmp_path / name, shade)
    write(tmp_path / ".hidden/f.png", 9)
    (tmp_path / "in/notes.txt").write_text("no picture")
    (tmp_path / "in/above").symlink_to(tmp_path)
    return tmp_path


def test_they_are_found_at_any_depth(folder: Path) -> None:
    pictures = open_pictures(folder)
    expected = ["a.png", "b.png", "in/c.png", "in/deep/d.png", "out/e.png"]
    assert pictures.names == expected
    assert len(pictures) == 5
    assert open_pictures(folder, limit=2).names == ["a.png", "in/c.png"]
    assert open_pictures(folder, limit=9).names == expected


def test_without_pictures_there_is_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no picture"):
        open_pictures(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        open_pictures(tmp_path / "none")


def test_another_content_is_another_identity(folder: Path) -> None:
    before = open_pictures(folder).identity()
    assert open_pictures(folder).identity() == before
    assert open_pictures(folder, limit=4).identity() != before
    os.utime(folder / "a.png", ns=(1, 1))
    assert open_pictures(folder).identity() != before


def test_a_link_to_nothing_is_a_picture_that_cannot_be_read(folder: Path) -> None:
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder / "none")
    pictures = open_pictures(folder)
    assert pictures.identity() == open_pictures(folder).identity()
    (part,) = picture_batches(TRANSFORM, pictures, 0, 5)
    assert "cannot read" in part.unreadable["a.png"]
    assert len(part.inputs) == 4


def test_broken_pictures_are_passed_over_and_batches_are_full(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "out/e.png").write_bytes(b"")
    pictures = open_pictures(folder)
    parts = list(picture_batches(TRANSFORM, pictures, 0, 2))
    assert [part.inputs[:, 0, 0, 0].tolist() for part in parts] == [[0, 2], [3]]
    assert [part.end for part in parts] == [3, 5]
    assert [list(part.unreadable) for part in parts] == [["b.png"], ["out/e.png"]]
    assert "cannot be decoded" in parts[0].unreadable["b.png"]
    # The measurement goes on with the picture that the first batch ended before.
    (again,) = picture_batches(TRANSFORM, pictures, parts[0].end, 2)
    assert np.array_equal(again.inputs, parts[1].inputs)


def test_a_last_batch_may_be_of_broken_pictures_alone(folder: Path) -> None:
    (folder / "out/e.png").write_bytes(b"")
    parts = list(picture_batches(TRANSFORM, open_pictures(folder), 0, 4))
    assert [(len(part.inputs), part.end) for part in parts] == [(4, 4), (0, 5)]
