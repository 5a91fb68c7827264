"""A filter of system calls (seccomp(2)): no files, sockets, programs or other processes."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping

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

_X32_BIT = 0x40000000  # of the numbers of another table on x86-64

# The numbers of system calls on x86-64 and on aarch64, which lacks many of the older ones.
_FORBIDDEN = {
    # Other machines, programs and processes.
    "socket": (41, 198),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "io_uring_setup": (425, 425),  # a ring does the work of calls that no filter sees
    # Files, where there is no Landlock.
    "open": (2, None),
    "creat": (85, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    # Modes, owners, times and attributes of files, which no version of Landlock protects.
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # Keys of the same user.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Memory that stays when no address points to it, so that no limit counts it.
    "shmget": (29, 194),
    # Namespaces, each with capabilities of its own.
    "unshare": (272, 97),
    "setns": (308, 268),
}
# Their first argument is a process, which has to be this one: 0, or its number.
_ON_ITSELF = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
}
_CLONE = (56, 220)
_CLONE_THREAD = 0x00010000
_CLONE3 = 435  # has its flags in memory, where no filter sees them

# By the name of an architecture: its column above, and its number in linux/audit.h.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


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


def forbid_files_and_other_processes() -> None:
    """Let the system calls fail that reach files, sockets, programs or other processes.

    The filter names what is forbidden, not what is allowed: which calls a C library makes differs
    between its versions.

    Raises:
        OSError: the kernel has no filters, or no table is known for this architecture.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    instructions = _filter(*_ARCHITECTURES[machine])
    program = _Program(len(instructions), ctypes.addressof(instructions))
    set_system_call_filter(program)


def _filter(column: int, architecture: int) -> ctypes.Array[_Instruction]:
    """Return the instructions of the filter."""
    instructions = [
        _Instruction(_LOAD_WORD, 0, 0, _ARCHITECTURE),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, architecture),
        _Instruction(_RETURN, 0, 0, _KILL_PROCESS),
        _Instruction(_LOAD_WORD, 0, 0, _NUMBER),
        _Instruction(_JUMP_IF_ANY_BIT, 0, 1, _X32_BIT),
        _Instruction(_RETURN, 0, 0, _FAIL | errno.EPERM),
    ]
    for number in _numbers(_FORBIDDEN, column):
        instructions += _fail(number, errno.EPERM)
    # The C library takes this for an old kernel, and uses clone().
    instructions += _fail(_CLONE3, errno.ENOSYS)
    own_number = os.getpid()
    for number in _numbers(_ON_ITSELF, column):
        instructions += [
            _Instruction(_JUMP_IF_EQUAL, 0, 5, number),
            _Instruction(_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
            _Instruction(_JUMP_IF_EQUAL, 2, 0, 0),
            _Instruction(_JUMP_IF_EQUAL, 1, 0, own_number),
            _Instruction(_RETURN, 0, 0, _FAIL | errno.EPERM),
            _Instruction(_RETURN, 0, 0, _ALLOW),
        ]
    instructions += [
        _Instruction(_JUMP_IF_EQUAL, 0, 3, _CLONE[column]),
        _Instruction(_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
        _Instruction(_JUMP_IF_ANY_BIT, 1, 0, _CLONE_THREAD),
        _Instruction(_RETURN, 0, 0, _FAIL | errno.EPERM),
        _Instruction(_RETURN, 0, 0, _ALLOW),
    ]
    return (_Instruction * len(instructions))(*instructions)


def _numbers(calls: Mapping[str, tuple[int, int | None]], column: int) -> list[int]:
    """Return the numbers of ``calls`` that the architecture has."""
    return [number for numbers in calls.values() if (number := numbers[column]) is not None]


def _fail(number: int, error: int) -> list[_Instruction]:
    """Return the instructions that let the system call ``number`` fail with ``error``."""
    return [
        _Instruction(_JUMP_IF_EQUAL, 0, 1, number),
        _Instruction(_RETURN, 0, 0, _FAIL | error),
    ]
