"""Closing a listening socket without resetting connections that wait in its backlog.

A connection waits in the kernel, established and with its request sent, until the event loop
accepts it. Closing the listening socket resets every waiting connection; under load there are some.
A socket filter that drops SYN packets stops new connections, while those already established can
still be accepted. Only a handshake that takes longer than `BACKLOG_EMPTY_SECONDS` is still reset.
A client whose SYN was dropped retransmits it after one second, then after two more (RFC 6298,
section 2): by then it is refused, or reaches the server that replaces this one.
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

# The backlog counts as empty after this long without a waiting connection.
BACKLOG_EMPTY_SECONDS = 0.2
# Upper bound. uvloop accepts one connection an iteration, so a busy loop needs time for all.
ACCEPT_SECONDS = 2.0
_POLL_SECONDS = 0.01

log = logging.getLogger("tome.server")

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the module `socket` lacks it
_FLAGS_OFFSET = 13  # of the flags byte in a TCP header (RFC 9293, section 3.1)
_SYN = 0x02  # the flag of a packet that opens a connection

# Classic BPF opcodes (linux/bpf_common.h).
_LOAD_BYTE = 0x30
_JUMP_IF_SET = 0x45
_RETURN = 0x06
_WHOLE_PACKET = 0xFFFFFFFF
# Each instruction: opcode, jump if true, jump if false, operand. Packets begin with the TCP header.
_DROP_SYN = (
    (_LOAD_BYTE, 0, 0, _FLAGS_OFFSET),
    (_JUMP_IF_SET, 0, 1, _SYN),
    (_RETURN, 0, 0, 0),  # SYN is set: drop the packet
    (_RETURN, 0, 0, _WHOLE_PACKET),  # else keep it
)


async def accept_pending(listeners: Iterable[socket.socket]) -> None:
    """Stop new connections to ``listeners``; wait until the loop has accepted all pending ones."""
    backlog = select.poll()
    for listener in listeners:
        drop_new_connections(listener)
        backlog.register(listener, select.POLLIN)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ACCEPT_SECONDS):
            quiet_seconds = 0.0
            while quiet_seconds < BACKLOG_EMPTY_SECONDS:
                await asyncio.sleep(_POLL_SECONDS)
                if backlog.poll(0):
                    quiet_seconds = 0.0
                else:
                    quiet_seconds += _POLL_SECONDS


def drop_new_connections(listener: socket.socket) -> None:
    """Drop SYN packets to ``listener`` from now on, in every process that shares its socket.

    Linux only. Some sandboxes reject socket filters, or accept them without effect. A Unix socket
    has no packets: without its file no connection begins.
    """
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return
    instructions = [struct.pack("HBBI", *instruction) for instruction in _DROP_SYN]
    program = ctypes.create_string_buffer(b"".join(instructions))
    program_header = struct.pack("HP", len(instructions), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program_header)
    except OSError as error:
        log.debug("connections that begin while the socket closes may be reset: %s", error)
