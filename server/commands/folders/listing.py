"""The pictures of a folder or a list."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from server.errors import ConfigError
from server.media.files import walk_media
from server.media.modality import Modality


def list_pictures(source: Path, *, recursive: bool = True) -> list[str]:
    """Return the paths of the pictures of ``source``.

    Args:
        source: a folder, whose pictures are sorted by their paths; or a text file with the path of
            one picture a line, which are taken as they are, in their order.
        recursive: whether pictures in folders below the folder count.

    Raises:
        ConfigError: there is no such folder or file, it cannot be read, or it has no picture.
    """
    is_folder = source.is_dir()
    try:
        if is_folder:
            paths = sorted(walk_media(source, Modality.IMAGE, recursive=recursive))
        else:
            paths = list(_read_list(source))
    except OSError as error:
        name = error.filename or source
        raise ConfigError(f"cannot read {name}: {error.strerror or error}") from error
    if not paths:
        raise ConfigError(f"{source} {'holds' if is_folder else 'names'} no picture")
    return paths


def digest_paths(paths: list[str]) -> str:
    """Return a hash of the files that ``paths`` name, in their order, from the working folder."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(os.path.abspath(path)) + b"\0")
    return digest.hexdigest()


def _read_list(source: Path) -> Iterator[str]:
    with source.open("rb") as file:
        for number, line in enumerate(file):
            if b"\0" in line:
                raise ConfigError(
                    f"{source} is no text; name a folder, or a text file with one path a line"
                )
            # Editors of Windows begin a file of UTF-8 with this mark.
            path = line.removeprefix(codecs.BOM_UTF8 if number == 0 else b"").rstrip(b"\r\n")
            if path:
                yield os.fsdecode(path)
