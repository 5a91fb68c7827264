"""No new connections on a socket that goes on listening: so that closing it resets none.

A connection waits in the kernel, complete and with its request sent, until the loop accepts it. Closing the listening
socket resets all that wait (tcp(7)), and under load some always do. A filter of the socket that drops the packet which
begins a connection lets those that have begun come through first. A client whose packet was dropped sends it again
after a second (RFC 6298, section 2), and is refused by then, or reaches whoever listens in this server's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import select
import socket
import struct
import sys
from collections.abc import Iterable

HANDSHAKE_SECONDS = 0.2  # which one that has begun may take
ACCEPT_SECONDS = 2.0  # which the loop may take to accept all of them, of which it takes one in each turn

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the module socket lacks it
_FLAGS = 13  # which byte of TCP's header they are (RFC 9293, section 3.1)
_SYN = 0x02  # the one that begins a connection
# Classic BPF, each (code, jump if true, jump if false, value), on a packet that begins with TCP's header.
_DROP_SYN = (
    (0x30, 0, 0, _FLAGS),  # load that byte
    (0x45, 0, 1, _SYN),  # is the flag set?
    (0x06, 0, 0, 0),  # yes: keep nothing of it
    (0x06, 0, 0, 0xFFFFFFFF),  # no: keep all
)


async def accept_the_last(listeners: Iterable[socket.socket]) -> None:
    """Return when the loop has accepted all who have begun to connect to ``listeners``; nobody else can from now on."""
    queue = select.poll()
    for listener in listeners:
        drop_handshakes(listener)
        queue.register(listener, select.POLLIN)
    await asyncio.sleep(HANDSHAKE_SECONDS)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ACCEPT_SECONDS):
            while queue.poll(0):
                await asyncio.sleep(0.005)


def drop_handshakes(listener: socket.socket) -> None:
    """From now on drop what would begin a connection to ``listener``, where the system can: on Linux."""
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN))
    with contextlib.suppress(OSError):  # a sandbox may have no filters
        where = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, where)
