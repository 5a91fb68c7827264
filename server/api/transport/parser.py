"""The parser of requests, which stays with HTTP/1.1 where a client offers another protocol.

A client may offer HTTP/2 with every request, as Java's does (``Upgrade: h2c``). A server may ignore
that (RFC 9110, section 7.8). httptools takes what follows the header for data of the other
protocol, so that a request would lose its body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import httptools


class RequestParser(httptools.HttpRequestParser):
    """httptools' parser, which reports an offer of another protocol to its owner.

    Args:
        events: takes the events of the requests.
        on_offer: called with the data after a header with an offer. This parser is of no use then.
    """

    def __init__(self, events: Any, on_offer: Callable[[bytes], None]) -> None:
        super().__init__(events)
        self._on_offer = on_offer
        # Like uvicorn: data after the last request of a connection is no error.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """Parse data. Raises `httptools.HttpParserError`."""
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            (header_end,) = offer.args
            self._on_offer(data[header_end:])


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
