"""What requests carry: files, unchanged, or generated images or sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import ConfigError
from server.media.files import media_files
from server.media.modality import Modality
from tome_load.pictures import generate_jpeg
from tome_load.sounds import generate_wavs

_ROOT = Path(__file__).parents[1]
EXAMPLES = _ROOT / "examples"
PAGE_EXAMPLES = _ROOT / "server" / "api" / "static" / "page" / "examples"


@dataclass(frozen=True)
class Upload:
    """The body of a request, and its name in reports."""

    name: str
    content: bytes


def read_uploads(paths: Sequence[Path], modality: Modality = Modality.IMAGE) -> tuple[Upload, ...]:
    """Read each file, and each file of ``modality`` in each folder.

    Without ``paths`` these are the examples, or generated ones if there are none. No videos are
    generated, but the page's examples are installed with the server.

    Raises:
        ConfigError: a path cannot be read, a folder has no file of ``modality``, or there is no
            example.
    """
    if not paths:
        return _examples(modality) or _generated(modality)
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += _files(path, modality)
        else:
            files.append(path)
    return _read(files)


def _examples(modality: Modality) -> tuple[Upload, ...]:
    if not EXAMPLES.is_dir():
        return ()
    return _read(media_files(EXAMPLES, modality))


def _generated(modality: Modality) -> tuple[Upload, ...]:
    if modality is Modality.VIDEO:
        return _read(_files(PAGE_EXAMPLES, modality))
    if modality is Modality.AUDIO:
        return tuple(Upload(name, content) for name, content in generate_wavs().items())
    return (Upload("generated.jpg", generate_jpeg()),)


def _files(folder: Path, modality: Modality) -> list[Path]:
    files = media_files(folder, modality)
    if not files:
        raise ConfigError(f"{folder} holds no {modality.noun} file")
    return files


def _read(files: Sequence[Path]) -> tuple[Upload, ...]:
    try:
        return tuple(Upload(file.name, file.read_bytes()) for file in files)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror or error}") from error
