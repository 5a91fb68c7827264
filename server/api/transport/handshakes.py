"""No new connections on a socket that goes on listening, so that closing it resets none of those that wait.

A connection waits in the kernel, complete and with its request sent, until the loop accepts it.
Closing the listening socket makes the kernel reset all that wait, and under load some do. A filter
of the socket that drops the packet which begins a connection lets those that have begun come
through first; one whose handshake takes longer than `QUIET_SECONDS` is still reset. A client whose
packet was dropped sends it again after a second, and after two more (RFC 6298, section 2): it is
refused then, or reaches whoever listens in this server's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import select
import socket
import struct
import sys
from collections.abc import Iterable

QUIET_SECONDS = 0.2  # in which nobody has come any more
ACCEPT_SECONDS = (
    2.0  # at most; uvloop accepts one in each turn, so a busy loop needs some time for all of them
)

log = logging.getLogger("tome.server")

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the module socket lacks it
_FLAGS = 13  # which byte of TCP's header they are (RFC 9293, section 3.1)
_SYN = 0x02  # the one that begins a connection
# Classic BPF, each (code, jump if true, jump if false, value), on a packet that begins with TCP's
# header.
_DROP_SYN = (
    (0x30, 0, 0, _FLAGS),  # load that byte
    (0x45, 0, 1, _SYN),  # is the flag set?
    (0x06, 0, 0, 0),  # yes: keep nothing of it
    (0x06, 0, 0, 0xFFFFFFFF),  # no: keep all
)


async def accept_the_last(listeners: Iterable[socket.socket]) -> None:
    """Return when the loop has accepted all who have begun to connect to ``listeners``; nobody else can from now on."""
    waiting = select.poll()
    for listener in listeners:
        drop_handshakes(listener)
        waiting.register(listener, select.POLLIN)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ACCEPT_SECONDS):
            quiet = 0.0
            while quiet < QUIET_SECONDS:
                await asyncio.sleep(0.01)
                quiet = 0.0 if waiting.poll(0) else quiet + 0.01


def drop_handshakes(listener: socket.socket) -> None:
    """From now on drop what would begin a connection to ``listener``, or to another that shares its socket.

    On Linux; and not in every sandbox, some of which refuse filters or take them to no effect.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(
        b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN)
    )
    where = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, where)
    except OSError as error:
        log.debug("connections that begin while the socket closes may be reset: %s", error)
