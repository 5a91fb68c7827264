"""Pictures of a folder are sorted, those of a list stay in its order; neither is held in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.commands.folders import listing
from server.commands.folders.listing import PathList, list_pictures
from server.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ("b.png", "a.JPG", "in/c.webp", "in/deep/d.gif", ".hidden/e.png", "in/notes.txt")
    for name in (*names, "x.png/f.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "pictures/in/above").symlink_to(tmp_path)
    return tmp_path / "pictures"


def names(paths: PathList, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in paths.read()]


@pytest.mark.parametrize("together", [1, 2, 100])
def test_pictures_at_any_depth_are_sorted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(listing, "_SORTED_TOGETHER", together)
    expected = ["a.JPG", "b.png", "in/c.webp", "in/deep/d.gif", "x.png/f.png"]
    with list_pictures(folder, folder) as paths:
        assert names(paths, folder) == expected
        assert len(paths) == 5
        assert [os.path.relpath(path, folder) for path in paths.read(4)] == expected[4:]
    with list_pictures(folder, folder, recursive=False) as flat:
        assert names(flat, folder) == ["a.JPG", "b.png"]
        assert flat.digest != paths.digest
    with list_pictures(folder, folder) as again:
        assert again.digest == paths.digest


def test_a_list_keeps_its_order_and_its_doubles(tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_bytes(b"b.png\r\n\na ,\xff.png\nb.png")
    with list_pictures(source, tmp_path) as paths:
        assert list(paths.read()) == ["b.png", os.fsdecode(b"a ,\xff.png"), "b.png"]


def test_names_of_any_bytes_are_listed(tmp_path: Path) -> None:
    strange = [b"a\nb.png", b"\xff.png", "ä\u2028.png".encode()]
    for name in strange:
        (tmp_path / os.fsdecode(name)).touch()
    with list_pictures(tmp_path, tmp_path) as paths:
        found = {os.path.basename(path) for path in paths.read()}
    assert found == set(map(os.fsdecode, strange))


def test_what_has_no_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no picture"):
        list_pictures(tmp_path, tmp_path)
    empty = tmp_path / "list.txt"
    empty.write_text("\n\n")
    with pytest.raises(ConfigError, match=r"list\.txt names no picture"):
        list_pictures(empty, tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read .*none: No such file"):
        list_pictures(tmp_path / "none", tmp_path)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    with pytest.raises(ConfigError, match=r"a\.png is no text; name a folder, or a text file"):
        list_pictures(picture, tmp_path)
