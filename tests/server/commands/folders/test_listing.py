"""Pictures of a folder are sorted, those of a list stay in its order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.commands.folders.listing import digest_paths, list_pictures
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


def test_pictures_at_any_depth_are_sorted(folder: Path) -> None:
    expected = ["a.JPG", "b.png", "in/c.webp", "in/deep/d.gif", "x.png/f.png"]
    assert list_pictures(folder) == [f"{folder}/{name}" for name in expected]
    assert list_pictures(folder, recursive=False) == [f"{folder}/a.JPG", f"{folder}/b.png"]


def test_links_that_lead_nowhere_are_listed(tmp_path: Path) -> None:
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "gone.png").symlink_to("nothing")
    assert list_pictures(tmp_path) == [f"{tmp_path}/gone.png", f"{tmp_path}/itself.png"]


def test_a_list_keeps_its_order_and_its_doubles(tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_bytes(b"\xef\xbb\xbfb.png\r\n\na ,\xff.png\nb.png")
    assert list_pictures(source) == ["b.png", os.fsdecode(b"a ,\xff.png"), "b.png"]


def test_a_list_may_be_a_pipe() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb"):
        with open(writer, "wb") as file:
            file.write(b"b.png\na.png\n")
        assert list_pictures(Path(f"/dev/fd/{reader}")) == ["b.png", "a.png"]


def test_names_of_any_bytes_are_listed(tmp_path: Path) -> None:
    strange = [b"a\nb.png", b"\xff.png", "ä\u2028.png".encode()]
    for name in strange:
        (tmp_path / os.fsdecode(name)).touch()
    found = {os.path.basename(path) for path in list_pictures(tmp_path)}
    assert found == set(map(os.fsdecode, strange))


def test_a_digest_tells_names_order_and_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = (["a.png", "b.png"], ["b.png", "a.png"], ["a.png"], ["a.png\nb.png"], ["a.png\xff"])
    digests = {digest_paths(paths) for paths in lists}
    assert len(digests) == len(lists)
    monkeypatch.chdir(tmp_path)
    assert digest_paths(["a.png"]) not in digests
    assert digest_paths(["a.png"]) == digest_paths([f"{tmp_path}/a.png"])
    digest_paths([os.fsdecode(b"\xff.png")])


def test_what_has_no_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no picture"):
        list_pictures(tmp_path)
    empty = tmp_path / "list.txt"
    empty.write_text("\n\n")
    with pytest.raises(ConfigError, match=r"list\.txt names no picture"):
        list_pictures(empty)
    with pytest.raises(ConfigError, match=r"cannot read .*none: No such file"):
        list_pictures(tmp_path / "none")
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    late = tmp_path / "late.txt"
    late.write_bytes(b"a.png\n" * 1000 + b"b\0.png\n")
    for source in (picture, late):
        with pytest.raises(ConfigError, match="is no text; name a folder, or a text file"):
            list_pictures(source)
