"""The state of a catalog's files, by which a reload finds out whether a model has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server.catalog.entries import FILE_FIELDS, Catalog, ModelSpec

# Of each file: its path, and its inode, size and time of modification; None if it is missing.
FilesState = tuple[tuple[str, tuple[int, int, int] | None], ...]


def files_state(specs: Iterable[ModelSpec]) -> FilesState:
    """Return the state of all files that the entries name, and of the files in their folders.

    Weights from the hub have none: an entry that names those is the same as long as its text is.
    """
    return tuple((str(path), _state(path)) for spec in specs for path in _files(spec))


def _files(spec: ModelSpec) -> Iterator[Path]:
    for name in FILE_FIELDS:
        path = getattr(spec, name)
        if path is not None:
            yield path
    yield from spec.label_files.values()
    if spec.folder is not None and spec.folder.is_dir():
        yield from sorted(path for path in spec.folder.iterdir() if path.is_file())


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()  # of what a link leads to: many deployments replace a link
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class CatalogRead:
    """A catalog as it was read at one time.

    Attributes:
        files: the state of the files that it names, before they were loaded.
    """

    catalog: Catalog
    files: FilesState

    @classmethod
    def of(cls, catalog: Catalog) -> CatalogRead:
        """Return ``catalog`` with the state of its files."""
        return cls(catalog, files_state(catalog.specs))

    def has_same_models(self, other: CatalogRead) -> bool:
        """Whether both would load the same."""
        return self.catalog.specs == other.catalog.specs and self.files == other.files
