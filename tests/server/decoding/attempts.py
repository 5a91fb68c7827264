"""What a hostile library would try in a worker. Each returns if it has succeeded."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

ALLOWED = "allowed"
_ATTACH = 16  # request of ptrace(2)
_LIBC = ctypes.CDLL(None, use_errno=True)


def outcome(name: str) -> str:
    """`ALLOWED`, or the name of the error with which the attempt failed."""
    try:
        ATTEMPTS[name]()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except ValueError:
        return "ValueError"
    return ALLOWED


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def _descriptors() -> list[int]:
    """All that are open, but the standard streams.

    The socket has the number that it had in the process of the tests, which may have many.
    """
    found = []
    for descriptor in range(3, 4_096):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.append(descriptor)
    return found


def _memories() -> list[int]:
    """The descriptors of what came with the task, which alone have a size."""
    return [descriptor for descriptor in _descriptors() if os.fstat(descriptor).st_size]


def _read_file() -> None:
    Path("/etc/passwd").read_bytes()


def _write_file() -> None:
    Path("/tmp/tome-hostile").write_bytes(b"x")


def _make_folder() -> None:
    Path("/tmp/tome-hostile-folder").mkdir()


def _list_folder() -> None:
    os.listdir("/")


def _read_environment_of_parent() -> None:
    Path(f"/proc/{os.getppid()}/environ").read_bytes()


def _open_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _open_unix_socket() -> None:
    socket.socket(socket.AF_UNIX)


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def _execute() -> None:
    os.execv("/bin/true", ["/bin/true"])


def _signal_parent() -> None:
    os.kill(os.getppid(), 0)


def _limit_parent() -> None:
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.prlimit(os.getppid(), resource.RLIMIT_CORE, limits)


def _change_mode() -> None:
    mode = Path(__file__).stat().st_mode
    Path(__file__).chmod(mode)


def _share_memory() -> None:
    _check(_LIBC.shmget(0, mmap.PAGESIZE, 0o600))


def _trace_parent() -> None:
    _check(_LIBC.ptrace(_ATTACH, os.getppid(), None, None))


def _raise_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _allow_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def _write_memory() -> None:
    descriptor = os.memfd_create("hostile")
    try:
        os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def _shrink() -> None:
    for descriptor in _memories():
        os.ftruncate(descriptor, 0)


def _change_body() -> None:
    mmap.mmap(min(_memories()), 1, prot=mmap.PROT_WRITE)


def _many_files() -> None:
    opened: list[int] = []
    try:
        while len(opened) < 64:
            opened.append(os.dup(0))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _descriptors_at_rest() -> None:
    """The socket, and the two of the task."""
    if len(_descriptors()) != 3:
        raise OSError(errno.EBADF, "")


def _die_on_term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)


ATTEMPTS: dict[str, Callable[[], None]] = {
    "read a file": _read_file,
    "write a file": _write_file,
    "make a folder": _make_folder,
    "list a folder": _list_folder,
    "read the parent's environment": _read_environment_of_parent,
    "open a socket": _open_socket,
    "open a Unix socket": _open_unix_socket,
    "fork": _fork,
    "execute": _execute,
    "signal the parent": _signal_parent,
    "limit the parent": _limit_parent,
    "trace the parent": _trace_parent,
    "change a mode": _change_mode,
    "share memory": _share_memory,
    "raise a limit": _raise_limit,
    "allow files": _allow_files,
    "write to memory": _write_memory,
    "shrink the memory": _shrink,
    "change the body": _change_body,
    "open many files": _many_files,
    "have three descriptors": _descriptors_at_rest,
    "get a signal to end": _die_on_term,
}
