"""The responses on a connection: uvicorn's cycle with fewer writes, and refusals."""

from __future__ import annotations

import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

from server.api.contract.problem_details import problem_response
from server.errors import RequestError

# The cycle of uvicorn sends responses that need more than their header and their content: those
# that end the connection or are framed in another way.
_OTHER_FRAMING = (b"connection", b"transfer-encoding")


class RequestCycle(RequestResponseCycle):
    """Writes a response at once, where uvicorn writes its header before it knows the content.

    uvicorn would make two packets of it, and check each header.
    """

    _start: Any = None  # of a response: the message with its header, until the content is known

    async def send(self, message: Any) -> None:
        """Send a message of the response."""
        if not self.response_started and message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start = self._start
            self._start = None
            if not self.flow.write_paused and self._send_whole(start, message):
                return
            await super().send(start)
        await super().send(message)

    def _send_whole(self, start: Any, message: Any) -> bool:
        """Send a response whose content is ``message``; return whether that was possible."""
        if self.disconnected or not self.keep_alive or message.get("more_body", False):
            return False
        headers = [*self.default_headers, *start.get("headers", ())]
        values = dict(headers)
        body = message.get("body", b"")
        if values.get(b"content-length") != b"%d" % len(body) or self.scope["method"] == "HEAD":
            return False
        if any(name in values for name in _OTHER_FRAMING):
            return False
        if HEADER_VALUE_RE.search(b"".join([value for _, value in headers])):
            return False  # uvicorn raises an error
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.response_started = True
        self.waiting_for_100_continue = False
        self.transport.write(b"".join([STATUS_LINE[start["status"]], *lines, b"\r\n", body]))
        self.response_complete = True
        self.message_event.set()
        self.on_response()
        return True


def refusal(error: RequestError) -> bytes:
    """Return a response with ``error`` that ends its connection, without a call of the application.

    It has an id as every response has.
    """
    request_id = uuid.uuid4().hex
    response = problem_response(
        error, request_id, {"X-Request-ID": request_id, "Connection": "close"}
    )
    lines = [b"%b: %b\r\n" % header for header in response.raw_headers]
    return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", response.body])
