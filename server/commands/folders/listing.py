"""The pictures of a folder or a list, in a temporary file: a list in memory could be too long."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Self

from server.errors import ConfigError
from server.media.files import walk_media
from server.media.modality import Modality

# Paths that are sorted at once, in memory.
_SORTED_TOGETHER = 100_000
# Of a list, where a NUL says that it is no text.
_SNIFFED_BYTES = 4096


class PathList:
    """Paths in an order, in a temporary file without a name, which ends with this process.

    One iteration at a time. To be closed, also by `with`.

    Args:
        paths: in their order.
        workplace: the folder of the temporary file.

    Attributes:
        digest: a hash of all paths in their order.
        text_bytes: of all paths as a JSON array of ASCII, about.
    """

    def __init__(self, paths: Iterable[str], workplace: Path) -> None:
        self._file = _temporary_file(workplace)
        self._count = 0
        self.text_bytes = 0
        digest = hashlib.sha256()
        try:
            for path in paths:
                line = _line(path)
                self._file.write(line)
                digest.update(line.encode("ascii"))
                self._count += 1
                self.text_bytes += len(line) + 1
        except BaseException:
            self.close()
            raise
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def read(self, start: int = 0) -> Iterator[str]:
        """Yield the paths from index ``start`` on."""
        self._file.seek(0)
        for line in itertools.islice(self._file, start, None):
            yield json.loads(line)


def list_pictures(source: Path, workplace: Path, *, recursive: bool = True) -> PathList:
    """Return the pictures of ``source``.

    Args:
        source: a folder, whose pictures are sorted by their paths; or a text file with the path of
            one picture a line, which are taken as they are, in their order.
        workplace: a folder for temporary files.
        recursive: whether pictures in folders below the folder count.

    Raises:
        ConfigError: there is no such folder or file, it cannot be read, or it has no picture.
    """
    try:
        if source.is_dir():
            found = walk_media(source, Modality.IMAGE, recursive=recursive)
            paths = PathList(_sorted(found, workplace), workplace)
        else:
            paths = PathList(_read_list(source), workplace)
    except OSError as error:
        name = error.filename or source
        raise ConfigError(f"cannot read {name}: {error.strerror or error}") from error
    if not len(paths):
        paths.close()
        raise ConfigError(f"{source} {'holds' if source.is_dir() else 'names'} no picture")
    return paths


def _read_list(source: Path) -> Iterator[str]:
    with source.open("rb") as file:
        if b"\0" in file.read(_SNIFFED_BYTES):
            raise ConfigError(
                f"{source} is no text; name a folder, or a text file with one path a line"
            )
        file.seek(0)
        for line in file:
            path = line.rstrip(b"\r\n")
            if path:
                yield os.fsdecode(path)


def _sorted(paths: Iterable[str], workplace: Path) -> Iterator[str]:
    """Sort ``paths`` in parts, which are merged from temporary files."""
    remaining = iter(paths)
    with contextlib.ExitStack() as opened:
        files = []
        while part := sorted(itertools.islice(remaining, _SORTED_TOGETHER)):
            file = opened.enter_context(_temporary_file(workplace))
            file.writelines(map(_line, part))
            file.seek(0)
            files.append(file)
        yield from heapq.merge(*(map(json.loads, file) for file in files))


def _line(path: str) -> str:
    """Return ``path`` as a line of ASCII, whatever characters it has."""
    return json.dumps(path) + "\n"


def _temporary_file(workplace: Path) -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="ascii", dir=workplace)
