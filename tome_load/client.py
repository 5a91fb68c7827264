"""The HTTP client of a run, aiohttp's: of general clients the one that costs the least CPU time."""

from __future__ import annotations

import asyncio
import os
import time
from types import SimpleNamespace
from typing import Any

import aiohttp

from server.system.unix_http import socket_path
from tome_load.record import Record
from tome_load.spec import LoadSpec


class NoAnswer(Exception):
    """A request failed; ``kind`` is ``connect``, ``closed``, ``timeout`` or ``protocol``."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Client:
    """Posts images over keep-alive connections, at most ``limit``; further requests wait.

    Attributes:
        start: `time.monotonic` from which the times of records count.
        opened: number of connections opened so far.
    """

    def __init__(self, spec: LoadSpec, limit: int) -> None:
        path = socket_path(spec.url)
        connector: aiohttp.BaseConnector
        if path is not None:
            connector = aiohttp.UnixConnector(path, limit=limit)
        else:
            connector = aiohttp.TCPConnector(limit=limit)
        # aiohttp's total timeout would count the wait for a connection too; see `_on_connection`.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=spec.timeout)
        headers = {"Content-Type": "application/octet-stream", "User-Agent": "tome-serve-load"}
        if spec.key:
            headers["Authorization"] = f"Bearer {spec.key}"
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._on_opened)
        trace.on_connection_reuseconn.append(self._on_connection)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=timeout,
            headers=headers,
            skip_auto_headers=("Accept", "Accept-Encoding"),
            trace_configs=[trace],
        )
        self._timeout = spec.timeout
        self._seconds = f"{spec.timeout:g} s"
        self.start = 0.0
        self.opened = 0

    async def post(self, url: str, body: bytes, record: Record) -> None:
        """Send ``body``, and set in ``record`` when, and the answer. Raises `NoAnswer`."""
        try:
            async with asyncio.timeout(None) as time_limit:
                context = (record, time_limit)
                async with self._session.post(
                    url, data=body, allow_redirects=False, trace_request_ctx=context
                ) as answer:
                    record.body = await answer.read()
                    record.status = answer.status
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise NoAnswer("connect", self._reason(error)) from error
        except TimeoutError as error:
            raise NoAnswer("timeout", f"no answer within {self._seconds}") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            detail = "the server closed the connection before it answered"
            raise NoAnswer("closed", detail) from error
        except aiohttp.ClientError as error:
            raise NoAnswer("protocol", "the answer is not HTTP") from error
        record.ended = time.monotonic() - self.start

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _on_opened(self, session: aiohttp.ClientSession, context: Any, _: object) -> None:
        self.opened += 1
        await self._on_connection(session, context, _)

    async def _on_connection(
        self, _session: aiohttp.ClientSession, context: SimpleNamespace, _: object
    ) -> None:
        """Note when a request has its connection: it is sent now, and its time limit begins."""
        record, time_limit = context.trace_request_ctx
        record.sent = time.monotonic() - self.start
        time_limit.reschedule(asyncio.get_running_loop().time() + self._timeout)

    def _reason(self, error: Exception) -> str:
        """Return the system's text for ``error``, which asyncio replaces by one of its own."""
        if not isinstance(error, aiohttp.ClientConnectorError):
            return f"no connection within {self._seconds}"
        number = error.os_error.errno
        # The error of a host name that is not found has no number of the system.
        if number is None or number <= 0:
            return str(error.os_error)
        return os.strerror(number)
