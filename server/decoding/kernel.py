"""Calls of the Linux kernel that Python's library does not have."""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)

# Options of prctl(2), in linux/prctl.h.
_SET_PARENT_DEATH_SIGNAL = 1
_SET_SECCOMP = 22
_SET_NO_NEW_PRIVILEGES = 38
_FILTER = 2  # mode of seccomp

# Flags of unshare(2), in linux/sched.h.
NEW_IPC = 0x08000000
NEW_USER = 0x10000000
NEW_NETWORK = 0x40000000

_CAPABILITY_VERSION = 0x20080522
_CAPABILITY_WORDS = 6  # effective, permitted and inheritable, each twice 32 bits


def forbid_new_privileges() -> None:
    """Let no program that this process runs have more privileges than it has."""
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)


def die_with_parent(signal: int) -> None:
    """Send ``signal`` to this process when the thread that started it has ended.

    The kernel forgets this when the process changes its privileges.
    """
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal)


def set_system_call_filter(program: ctypes.Structure) -> None:
    """Filter all system calls from now on by a ``struct sock_fprog``."""
    _prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(program))


def unshare(flags: int) -> None:
    """Move this process into new namespaces of the kinds that ``flags`` name."""
    _check(_LIBC.unshare(ctypes.c_int(flags)))


def drop_capabilities() -> None:
    """Give up all capabilities, as a process of another user than root has none."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * _CAPABILITY_WORDS)()
    _check(_LIBC.capset(header, none))


def system_call(number: int, *arguments: int | None) -> int:
    """Return the result of a system call that the C library does not know.

    Raises:
        OSError: it failed.
    """
    words = [ctypes.c_void_p(argument) for argument in arguments]
    return _check(_LIBC.syscall(ctypes.c_long(number), *words))


def _prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(argument) for argument in arguments]
    unused = [ctypes.c_ulong(0)] * (4 - len(words))
    _check(_LIBC.prctl(ctypes.c_int(option), *words, *unused))


def _check(result: int) -> int:
    """Return ``result`` if it is no failure. Raises OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
