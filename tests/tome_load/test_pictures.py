"""Images to send come from files, folders, the examples, or a generator."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from server.errors import ConfigError
from tome_load import pictures
from tome_load.pictures import generate_jpeg, read_pictures


def test_files_folders_and_examples_are_read(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.avif", "._a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    names = [picture.name for picture in read_pictures([tmp_path])]
    assert names == ["a.jpg", "b.PNG", "c.avif"]
    (notes,) = read_pictures([tmp_path / "notes.txt"])  # a file need not be an image
    assert notes.content == b"notes.txt"
    assert "sneaker.jpg" in [picture.name for picture in read_pictures([])]
    with pytest.raises(ConfigError, match="cannot read"):
        read_pictures([tmp_path / "none.png"])


def test_without_examples_an_image_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "EXAMPLES", tmp_path / "none")
    (picture,) = read_pictures([])
    assert picture.content == generate_jpeg()
    with Image.open(io.BytesIO(picture.content)) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))
        assert len(image.getcolors(1 << 18) or ()) > 1000
