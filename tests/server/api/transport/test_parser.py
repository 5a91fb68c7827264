"""Requests that offer another protocol, as those of Java's HttpClient (RFC 9110, section 7.8)."""

from __future__ import annotations

import socket

import httptools
import pytest

from server.api.transport.parser import BodyEvents, RequestParser, framing
from tests.server.wire import SNEAKER, read_response

OFFER = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
)
LENGTH = f"Content-Length: {len(SNEAKER)}\r\n"
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


class Recorder:
    """What a connection does with the events of its parser."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.urls: list[bytes] = []
        self.bodies: list[bytes] = []
        self.parser = RequestParser(self, self.on_offer)

    def on_offer(self, rest: bytes) -> None:
        self.parser = RequestParser(BodyEvents(self), self.on_offer)
        self.parser.feed_data(framing(self.headers) + rest)

    def on_message_begin(self) -> None:
        self.headers = []

    def on_url(self, url: bytes) -> None:
        self.urls.append(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self.bodies[-1] += b"<end>"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_bodies_of_any_framing_are_parsed_however_the_data_is_split(step):
    chunked = f"{HEAD}{OFFER}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    counted = f"{HEAD}{OFFER}Content-Length: 4\r\n\r\nfghi"
    without = f"GET /models HTTP/1.1\r\nHost: x\r\n{OFFER}\r\n"
    data = (chunked + counted + without + counted).encode()
    recorder = Recorder()
    for start in range(0, len(data), step):
        recorder.parser.feed_data(data[start : start + step])
    assert recorder.bodies == [b"abcde<end>", b"fghi<end>", b"<end>", b"fghi<end>"]
    assert b"".join(recorder.urls) == 2 * b"/classify?top_k=1" + b"/models/classify?top_k=1"


def test_a_body_that_breaks_its_framing_is_an_error():
    recorder = Recorder()
    with pytest.raises(httptools.HttpParserError):
        recorder.parser.feed_data(
            f"{HEAD}{OFFER}Transfer-Encoding: chunked\r\n\r\nno size\r\n".encode()
        )
