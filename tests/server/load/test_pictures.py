from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from server.errors import ConfigError
from server.load import pictures
from server.load.pictures import jpeg, read_pictures


def test_files_folders_and_examples(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert [picture.name for picture in read_pictures([tmp_path])] == ["a.jpg", "b.PNG"]
    assert (
        read_pictures([tmp_path / "notes.txt"])[0].content == b"notes.txt"
    )  # a file is sent whatever it is
    assert "sneaker.jpg" in [picture.name for picture in read_pictures([])]
    with pytest.raises(ConfigError, match="cannot read"):
        read_pictures([tmp_path / "none.png"])


def test_without_examples_a_picture_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "EXAMPLES", tmp_path / "none")
    (picture,) = read_pictures([])
    assert picture.content == jpeg()
    with Image.open(io.BytesIO(picture.content)) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))
        assert len(image.getcolors(1 << 18) or ()) > 1000
