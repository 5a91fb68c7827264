"""Requests that offer another protocol, as those of Java's HttpClient (RFC 9110, section 7.8)."""

from __future__ import annotations

import asyncio
import socket

import pytest
from starlette.types import Receive, Scope, Send

from server.api.transport.lingering import LingerLimits
from tests.server.api.transport.in_loop import listening, run, until
from tests.server.wire import SNEAKER, read_response

OFFER = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
)
LENGTH = f"Content-Length: {len(SNEAKER)}\r\n"
END = b"<end>"
HEAD = "POST /classify?top_k=1 HTTP/1.1\r\nHost: x\r\n"


def first_label(connection: socket.socket) -> str:
    response = read_response(connection)
    assert response.status_code == 200, response.text
    label: str = response.json()["predictions"][0]["label"]
    return label


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_the_body_is_read_and_the_connection_goes_on(server, protocol):
    head = (HEAD + OFFER.replace("h2c", protocol) + LENGTH + "\r\n").encode()
    with server.connect() as connection:
        connection.sendall(head + SNEAKER + head)
        assert first_label(connection) == "Sneaker"
        connection.sendall(SNEAKER + (HEAD + LENGTH + "\r\n").encode() + SNEAKER)
        assert first_label(connection) == "Sneaker"
        assert first_label(connection) == "Sneaker"


def test_an_early_answer_arrives_whole_before_the_connection_closes(server):
    size = 8_000_000
    offer = OFFER.replace("Upgrade,", "close, Upgrade,")
    head = f"POST /classify?r=no HTTP/1.1\r\nHost: x\r\n{offer}Content-Length: {size}\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode() + bytes(size))
        assert read_response(connection).status_code == 422
        assert connection.recv(1) == b""


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the target and the body of the request."""
    content = scope["raw_path"]
    more = True
    while more:
        message = await receive()
        content += message["body"]
        more = message["more_body"]
    headers = [(b"content-length", str(len(content) + len(END)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content + END})


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_bodies_of_any_framing_are_parsed_however_the_data_is_split(step: int) -> None:
    chunked = f"{HEAD}{OFFER}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    counted = f"{HEAD}{OFFER}Content-Length: 4\r\n\r\nfghi"
    without = f"GET /models HTTP/1.1\r\nHost: x\r\n{OFFER}\r\n"
    data = (chunked + counted + without + counted).encode()

    async def test() -> None:
        async with listening(echo, LingerLimits()) as server:
            reader, _ = await server.connect()
            await until(lambda: server.http.server_state.connections)
            (connection,) = server.http.server_state.connections
            for start in range(0, len(data), step):
                connection.data_received(data[start : start + step])
            for content in (b"/classifyabcde", b"/classifyfghi", b"/models", b"/classifyfghi"):
                answer = await reader.readuntil(END)
                assert answer.endswith(b"\r\n\r\n" + content + END)

    run(asyncio.new_event_loop, test())


def test_a_body_that_breaks_its_framing_is_an_error(server):
    with server.connect() as connection:
        head = f"{HEAD}{OFFER}Transfer-Encoding: chunked\r\n\r\nno size\r\n"
        connection.sendall(head.encode())
        assert read_response(connection).status_code == 400
