"""Requests that offer another protocol: the connection stays with HTTP/1.1.

A client may offer HTTP/2 with every request, as Java's does (``Upgrade: h2c``). A server may ignore
that (RFC 9110, section 7.8). httptools takes what follows the header for data of the other
protocol, so that a request would lose its body. So a new parser goes on after the header.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httptools


def body_parser(events: Any) -> httptools.HttpRequestParser:
    """Return a parser for a request whose header was parsed before, and for all later requests.

    It takes the `framing` of that request first.

    Args:
        events: takes the events of the body, and those of later requests.
    """
    parser = httptools.HttpRequestParser(BodyEvents(events))
    # Like uvicorn: data after the last request of a connection is no error.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class BodyEvents:
    """The events of a request whose header was parsed before, and all events of later requests."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._in_known_header = True
        self.on_body = events.on_body
        self.on_message_complete = events.on_message_complete

    def on_message_begin(self) -> None:
        """Report the begin of a later request."""
        if not self._in_known_header:
            self._events.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Report the target of a later request."""
        if not self._in_known_header:
            self._events.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Report a field of a later request."""
        if not self._in_known_header:
            self._events.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Report the end of the header of a later request."""
        if not self._in_known_header:
            self._events.on_headers_complete()
        self._in_known_header = False


def framing(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a header with the fields that say where the body ends (RFC 9112, section 6).

    Args:
        headers: names in small letters, and values.
    """
    lines = [b"POST / HTTP/1.1\r\n"]
    for name, value in headers:
        if name in (b"content-length", b"transfer-encoding"):
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join([*lines, b"\r\n"])
