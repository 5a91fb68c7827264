"""Landlock (landlock(7)): a process gives up access to files, addresses and other processes."""

from __future__ import annotations

import ctypes
import os

from server.decoding.kernel import system_call

# System calls; their numbers are the same on every architecture.
_CREATE_RULESET = 444
_RESTRICT_SELF = 446
_GET_VERSION = 1  # flag of the former

# How many of the rights on files, in the order of their bits, each version knows.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NETWORK_VERSION = 4
_NETWORK_RIGHTS = 0b11  # to bind a TCP port, to connect to one
_SCOPE_VERSION = 6
_SCOPES = 0b11  # no abstract Unix socket and no signal beyond this process and its children


class _Ruleset(ctypes.Structure):
    """``struct landlock_ruleset_attr``."""

    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


def forbid_everything() -> None:
    """Forbid this process all that the kernel's version of Landlock can forbid.

    No file can be opened, made, changed or removed any more, no TCP port used, no other process
    traced, and no signal sent to one. Open files stay open.

    Raises:
        OSError: the kernel has no Landlock, or does not let this process use it.
    """
    version = system_call(_CREATE_RULESET, None, 0, _GET_VERSION)
    known_rights = _FILE_RIGHTS.get(version, max(_FILE_RIGHTS.values()))
    ruleset = _Ruleset(
        files=(1 << known_rights) - 1,
        network=_NETWORK_RIGHTS if version >= _NETWORK_VERSION else 0,
        scopes=_SCOPES if version >= _SCOPE_VERSION else 0,
    )
    # A kernel takes a structure that is longer than its own if the rest is zero.
    size = ctypes.sizeof(ruleset)
    descriptor = system_call(_CREATE_RULESET, ctypes.addressof(ruleset), size, 0)
    try:
        system_call(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)
