"""Which files of a folder are images, sounds or videos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from server.media.modality import Modality

SUFFIXES = {
    Modality.IMAGE: {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".avif"},
    Modality.AUDIO: {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"},
    Modality.VIDEO: {".mp4", ".m4v", ".mov", ".webm", ".mkv"},
}


def is_hidden(path: Path) -> bool:
    """Return whether ``path`` is one that a tool has left behind, not a class or an image.

    Such are ``.ipynb_checkpoints``, and ``._x.jpg`` or ``__MACOSX`` of macOS, whose contents are
    no images, whatever their names end with.
    """
    return path.name.startswith(".") or path.name == "__MACOSX"


def media_files_below(folder: Path, modality: Modality) -> list[Path]:
    """Return the images, sounds or videos in ``folder`` and in the folders below it, sorted.

    Raises:
        OSError: a folder cannot be read.
    """
    found = media_files(folder, modality)
    for child in sorted(folder.iterdir()):
        # A link to a folder above would never end.
        if child.is_dir() and not child.is_symlink() and not is_hidden(child):
            found += media_files_below(child, modality)
    return found


def media_files(folder: Path, modality: Modality) -> list[Path]:
    """Return the images, sounds or videos in ``folder`` by their suffix, sorted by name.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES[modality] and not is_hidden(path)
    )


def walk_media(folder: Path, modality: Modality, *, recursive: bool = True) -> Iterator[str]:
    """Yield the paths of the images, sounds or videos in ``folder``, in no order.

    Links to folders are not followed, for one to a folder above would never end.

    Args:
        recursive: whether those in the folders below it count.

    Raises:
        OSError: a folder cannot be read.
    """
    for parent, folders, names in os.walk(folder, onerror=_fail):
        # What is left in it is visited.
        folders[:] = [name for name in folders if recursive and not is_hidden(Path(name))]
        for name in names:
            is_media = os.path.splitext(name)[1].lower() in SUFFIXES[modality]
            if is_media and not is_hidden(Path(name)):
                yield os.path.join(parent, name)


def _fail(error: OSError) -> None:
    raise error
