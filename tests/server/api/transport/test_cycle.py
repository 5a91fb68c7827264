"""What `RequestCycle` sends, beside uvicorn's own cycle."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.api.transport.cycle import RequestCycle

Message = dict[str, Any]
LOG = logging.getLogger("test")


class Transport:
    """Records what is written, and whether it was closed."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class Flow:
    write_paused = False

    async def drain(self) -> None:
        self.write_paused = False


class Exchange:
    """A request that was answered by ``messages`` on a cycle of ``cycle_type``."""

    def __init__(
        self,
        cycle_type: type[RequestResponseCycle],
        messages: list[Message],
        method: str = "POST",
        keep_alive: bool = True,
        write_paused: bool = False,
        disconnected: bool = False,
    ) -> None:
        self.transport = Transport()
        self.responses = 0
        self.error = ""
        flow = Flow()
        flow.write_paused = write_paused
        arguments: dict[str, Any] = {
            "scope": {"method": method},
            "transport": self.transport,
            "flow": flow,
            "logger": LOG,
            "access_logger": LOG,
            "access_log": False,
            "default_headers": [(b"date", b"today")],
            "message_event": asyncio.Event(),
            "expect_100_continue": False,
            "keep_alive": keep_alive,
            "on_response": self.on_response,
        }
        self.cycle = cycle_type(**arguments)
        self.cycle.disconnected = disconnected
        asyncio.run(self.send(messages))

    def on_response(self) -> None:
        self.responses += 1

    async def send(self, messages: list[Message]) -> None:
        try:
            for message in messages:
                await self.cycle.send(message)  # type: ignore[arg-type]
        except RuntimeError as error:
            self.error = str(error)

    def observed(self) -> tuple[object, ...]:
        cycle = self.cycle
        return (
            self.error,
            self.error or b"".join(self.transport.written),
            self.transport.closed,
            self.responses,
            cycle.response_complete,
            cycle.keep_alive,
            cycle.message_event.is_set(),
        )


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes, more_body: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more_body}


TYPE = (b"content-type", b"text/plain")
TWO = (b"content-length", b"2")
RESPONSES = {
    "plain": [start(200, TYPE, TWO), body(b"ok")],
    "error": [start(503, TYPE, TWO, (b"retry-after", b"1")), body(b"no")],
    "empty": [start(200, (b"content-length", b"0")), body(b"")],
    "no content": [start(304), body(b"")],
    "in parts": [start(200, TWO), body(b"o", more_body=True), body(b"k")],
    "chunked": [start(200, TYPE), body(b"ok")],
    "chunked by itself": [start(200, (b"transfer-encoding", b"chunked")), body(b"ok")],
    "closing": [start(200, TWO, (b"connection", b"close")), body(b"ok")],
    "too long": [start(200, TWO), body(b"okay")],
    "too short": [start(200, TWO), body(b"o")],
    "twice": [start(200, TWO), body(b"ok"), body(b"ok")],
    "split": [start(200, TWO, (b"x", b"a\r\nb: c")), body(b"ok")],
    "split before": [start(200, TWO, (b"x", b"a\nb"), (b"x", b"c")), body(b"ok")],
    "other case": [start(200, (b"Content-Length", b"2")), body(b"ok")],
    "no start": [body(b"ok")],
}
CONNECTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "head": {"method": "HEAD"},
    "closing": {"keep_alive": False},
    "slow": {"write_paused": True},
    "gone": {"disconnected": True},
}


@pytest.mark.parametrize("connection", CONNECTIONS.values(), ids=CONNECTIONS)
@pytest.mark.parametrize("messages", RESPONSES.values(), ids=RESPONSES)
def test_it_sends_what_uvicorn_sends(messages, connection):
    expected = Exchange(RequestResponseCycle, messages, **connection)
    found = Exchange(RequestCycle, messages, **connection)
    assert found.observed() == expected.observed()


@pytest.mark.parametrize("name", ["plain", "error", "empty"])
def test_a_whole_response_is_one_write(name):
    assert len(Exchange(RequestCycle, RESPONSES[name]).transport.written) == 1


def test_a_response_that_fails_before_its_content_is_an_error():
    """No header of it was sent yet, so the client gets another response."""
    exchange = Exchange(RequestCycle, [start(200, TWO), start(500, TWO), body(b"no")])
    assert exchange.transport.written[0].startswith(b"HTTP/1.1 500 ")
