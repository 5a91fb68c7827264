"""Which files of a folder are images."""

from __future__ import annotations

from pathlib import Path

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".avif"}


def is_hidden(path: Path) -> bool:
    """Return whether ``path`` is one that a tool has left behind, not a class or an image.

    Such are ``.ipynb_checkpoints``, and ``._x.jpg`` or ``__MACOSX`` of macOS, whose contents are
    no images, whatever their names end with.
    """
    return path.name.startswith(".") or path.name == "__MACOSX"


def image_files(folder: Path) -> list[Path]:
    """Return the images in ``folder`` by their suffix, sorted by name. Raises `OSError`."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path)
    )
