"""A filter of system calls (seccomp(2)): no new sockets, processes or programs."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

from server.decoding.kernel import set_system_call_filter

# Instructions of the classic BPF, in linux/bpf_common.h.
_LOAD_WORD = 0x20
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_ANY_BIT = 0x45
_RETURN = 0x06

# Where the words are in ``struct seccomp_data``.
_NUMBER = 0
_ARCHITECTURE = 4
_FIRST_ARGUMENT = 16

# What a filter returns, in linux/seccomp.h.
_KILL_PROCESS = 0x80000000
_ALLOW = 0x7FFF0000
_FAIL = 0x00050000  # with the number of an error in the lower half

_CLONE_THREAD = 0x00010000
_CLONE3 = 435  # has its flags in memory, where no filter sees them
_IO_URING_SETUP = 425  # a ring makes sockets without a system call
_X32_BIT = 0x40000000  # of the numbers of another table on x86-64


@dataclass(frozen=True)
class _Architecture:
    """The numbers of one architecture.

    Attributes:
        audit: its number in linux/audit.h.
        forbidden: the system calls that fail.
        clone: makes processes and threads.
    """

    audit: int
    forbidden: tuple[int, ...]
    clone: int


_ARCHITECTURES = {
    # socket, fork, vfork, execve, ptrace, process_vm_readv, process_vm_writev, execveat
    "x86_64": _Architecture(0xC000003E, (41, 57, 58, 59, 101, 310, 311, 322), clone=56),
    # socket, execve, ptrace, process_vm_readv, process_vm_writev, execveat
    "aarch64": _Architecture(0xC00000B7, (198, 221, 117, 270, 271, 281), clone=220),
}


class _Instruction(ctypes.Structure):
    """``struct sock_filter``; jumps count the instructions that they skip."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.c_void_p))


def forbid_sockets_and_processes() -> None:
    """Let the system calls fail that make sockets, processes and programs, or read other processes.

    The filter names what is forbidden, not what is allowed: which calls a C library makes differs
    between its versions.

    Raises:
        OSError: the kernel has no filters, or no table is known for this architecture.
    """
    architecture = _ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {os.uname().machine}")
    instructions = _filter(architecture)
    program = _Program(len(instructions), ctypes.addressof(instructions))
    set_system_call_filter(program)


def _filter(architecture: _Architecture) -> ctypes.Array[_Instruction]:
    """Return the instructions of the filter."""
    instructions = [
        _Instruction(_LOAD_WORD, 0, 0, _ARCHITECTURE),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, architecture.audit),
        _Instruction(_RETURN, 0, 0, _KILL_PROCESS),
        _Instruction(_LOAD_WORD, 0, 0, _NUMBER),
        _Instruction(_JUMP_IF_ANY_BIT, 0, 1, _X32_BIT),
        _Instruction(_RETURN, 0, 0, _FAIL | errno.EPERM),
    ]
    for number in (*architecture.forbidden, _IO_URING_SETUP):
        instructions += _fail(number, errno.EPERM)
    # The C library takes this for an old kernel, and uses clone().
    instructions += _fail(_CLONE3, errno.ENOSYS)
    instructions += [
        _Instruction(_JUMP_IF_EQUAL, 0, 3, architecture.clone),
        _Instruction(_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
        _Instruction(_JUMP_IF_ANY_BIT, 1, 0, _CLONE_THREAD),
        _Instruction(_RETURN, 0, 0, _FAIL | errno.EPERM),
        _Instruction(_RETURN, 0, 0, _ALLOW),
    ]
    return (_Instruction * len(instructions))(*instructions)


def _fail(number: int, error: int) -> list[_Instruction]:
    """Return the instructions that let the system call ``number`` fail with ``error``."""
    return [
        _Instruction(_JUMP_IF_EQUAL, 0, 1, number),
        _Instruction(_RETURN, 0, 0, _FAIL | error),
    ]
