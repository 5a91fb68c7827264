"""Files that are replaced as a whole: whoever reads one finds the old content or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from server.errors import ConfigError

# A folder that refuses another file, or a file that is a mount point.
_NOT_REPLACEABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, as UTF-8, and then rename it.

    A file that exists keeps its permissions, and a link stays one. What cannot be replaced is
    written in place: a device, a file that is mounted, or one in a folder that is not writable.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, "utf-8")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def _replace(path: Path, text: str) -> None:
    exists = path.exists()
    if exists:
        path.open("ab").close()  # to rename another file to it would not ask for its permission
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        if exists:
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except OSError as error:
        if not exists or error.errno not in _NOT_REPLACEABLE:
            raise
        path.write_text(text, "utf-8")
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(output: Path) -> None:
    """Check before the work that ``output`` can be written.

    Raises:
        ConfigError: its folder is missing or may not be written, or it is no file.
    """
    if not output.parent.is_dir():
        raise ConfigError(f"cannot write {output}: there is no folder {output.parent}")
    is_writable = os.access(output.parent, os.W_OK)
    if output.exists():
        is_writable &= output.is_file() and os.access(output, os.W_OK)
    if not is_writable:
        raise ConfigError(f"cannot write {output}: Permission denied, or it is not a file")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file beside ``path`` to write, and rename it to ``path`` when the block succeeds.

    It is on the disk before it is renamed. A file that exists keeps its permissions, and a link
    stays one. One process at a time may do so: what one that was killed has left beside ``path`` is
    written over by the next.

    Raises:
        ConfigError: the file cannot be written.
    """
    target = path.resolve()
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        if target.exists():
            target.open("ab").close()  # as in `replace_text`
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
