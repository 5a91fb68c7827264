"""The load generator against servers that stall, break off, or do not answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.errors import ConfigError
from tests.server.conftest import free_port
from tests.tome_load.fake_server import OK, Answer, always_ok, fake_server
from tome_load.report import LoadReport
from tome_load.run import run_load
from tome_load.spec import LoadSpec
from tome_load.uploads import Upload

UPLOADS = (Upload("a", b"xyz"), Upload("b", b"xy" * 40_000))


def load(answer: Answer, **spec: Any) -> LoadReport:
    async def main() -> LoadReport:
        async with fake_server(answer) as url:
            return await run_load(LoadSpec(url, UPLOADS, **{"probe": False, **spec}))

    return asyncio.run(main())


def test_a_stall_counts_for_every_request_that_it_delays() -> None:
    """Coordinated omission: one request meets the stall, but dozens were planned in that time."""

    async def stall_once(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 20:
            await asyncio.sleep(2)
        writer.write(OK)

    report = load(stall_once, rate=100, arrivals="constant", requests=100, max_connections=1)
    assert report.outcomes == {"200": 100}
    delayed = [record for record in report.records if record.response > 1]
    assert {record.number for record in delayed} >= set(range(20, 100))
    # Pauses of a busy machine may delay others by less, or a few as much.
    assert sum(record.service > 1 for record in report.records) <= 3
    assert report.response is not None and report.service is not None and report.lag is not None
    assert report.response.p90 > 1000 > report.service.p95
    # The difference is the wait for a connection.
    for record in report.records:
        if record.sent:
            lag = record.sent - record.intended
            assert record.response == pytest.approx(record.service + lag)


def test_a_closed_loop_waits_for_its_answers() -> None:
    in_flight = 0
    peak = 0
    all_sent = asyncio.Event()

    async def slow(number: int, writer: asyncio.StreamWriter) -> None:
        nonlocal in_flight, peak
        in_flight += 1
        peak = max(peak, in_flight)
        if in_flight == 3:
            all_sent.set()
        await all_sent.wait()
        await asyncio.sleep(0.005)
        in_flight -= 1
        writer.write(OK)

    report = load(slow, connections=3, requests=31)
    assert (report.requests, report.answered, report.connections_opened, peak) == (31, 31, 3, 3)
    assert [record.number for record in report.records] == list(range(31))


def test_an_open_loop_does_not_wait_for_answers() -> None:
    waiting: list[asyncio.StreamWriter] = []

    async def answer_after_the_last(number: int, writer: asyncio.StreamWriter) -> None:
        waiting.append(writer)
        if len(waiting) == 50:
            for each in waiting:
                each.write(OK)

    report = load(answer_after_the_last, rate=500, requests=50)
    assert (report.answered, report.connections_opened) == (50, 50)


def test_the_warm_up_does_not_count() -> None:
    answered = 0

    async def count(number: int, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        answered += 1
        writer.write(OK)

    report = load(count, rate=200, arrivals="constant", warmup=0.2, duration=0.3)
    assert (report.requests, answered) == (60, 100)
    assert all(record.intended >= 0 for record in report.records)


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "closed"),
        (b"", "closed"),
        (b"SSH-2.0-x\r\n\r\n", "protocol"),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "503"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", "200"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "200"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, "200"),
    ],
)
@pytest.mark.parametrize("loop", [{"connections": 2}, {"rate": 200.0}])
def test_the_outcome_of_a_connection_that_closes(
    sent: bytes, outcome: str, loop: dict[str, Any]
) -> None:
    async def then_close(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        writer.close()

    report = load(then_close, requests=9, **loop)
    # An answer may arrive before the end of its connection. The next request then finds it closed.
    assert report.outcomes.get(outcome, 0) >= 5
    assert set(report.outcomes) <= {outcome, "closed"}
    assert sum(report.outcomes.values()) == 9


def test_a_connection_is_not_used_again_after_a_timeout() -> None:
    async def late(number: int, writer: asyncio.StreamWriter) -> None:
        if number > 0:  # the first request gets no answer
            writer.write(OK)

    report = load(late, connections=1, requests=3, timeout=3)
    assert [record.failure or record.status for record in report.records] == ["timeout", 200, 200]
    assert report.connections_opened == 2


def test_the_timeout_covers_an_answer_that_arrives_byte_by_byte() -> None:
    async def drip(number: int, writer: asyncio.StreamWriter) -> None:
        for byte in OK:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.1)

    report = load(drip, connections=1, requests=2, timeout=0.5)
    assert report.outcomes == {"timeout": 2}
    for record in report.records:
        assert 0.45 < record.service < 0.1 * len(OK)


def test_the_timeout_does_not_cover_the_wait_for_a_connection() -> None:
    async def slow(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.25)
        writer.write(OK)

    report = load(slow, rate=1000, requests=10, max_connections=1, timeout=2)
    assert report.outcomes == {"200": 10}
    assert max(record.response for record in report.records) > 2


def test_without_a_server_there_is_no_run() -> None:
    spec = LoadSpec(f"http://127.0.0.1:{free_port()}", UPLOADS, connections=1, requests=2)
    with pytest.raises(ConfigError, match="gives no answer: Connection refused"):
        asyncio.run(run_load(spec))
    report = asyncio.run(
        run_load(LoadSpec(spec.url, UPLOADS, connections=1, requests=2, probe=False))
    )
    assert (report.outcomes, report.answered, report.response) == ({"connect": 2}, 0, None)


def test_a_refused_request_stops_the_run_before_it_starts() -> None:
    async def refuse(number: int, writer: asyncio.StreamWriter) -> None:
        body = b'{"detail": "r is too big"}'
        writer.write(b"HTTP/1.1 422 x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with pytest.raises(ConfigError, match="refuses r=99: 422, r is too big"):
        load(refuse, connections=1, requests=2, r=("99",), probe=True)


def test_a_stop_ends_the_sending_but_not_the_wait_for_answers() -> None:
    async def main() -> LoadReport:
        stop = asyncio.Event()

        async def stop_at_five(number: int, writer: asyncio.StreamWriter) -> None:
            if number == 5:
                stop.set()
                await asyncio.sleep(0.05)
            writer.write(OK)

        async with fake_server(stop_at_five) as url:
            # At this rate few requests are overdue after a pause of this process. All overdue ones
            # are sent at once.
            spec = LoadSpec(url, UPLOADS, rate=5, duration=600, probe=False)
            return await asyncio.wait_for(run_load(spec, stop=stop), 30)

    report = asyncio.run(main())
    assert 6 <= report.requests < 50
    assert report.outcomes == {"200": report.requests}


def test_the_observer_sees_bodies_and_the_report_keeps_none() -> None:
    bodies = []

    async def main() -> LoadReport:
        async with fake_server(always_ok) as url:
            spec = LoadSpec(url, UPLOADS, connections=2, requests=4, probe=False)
            return await run_load(spec, lambda record: bodies.append((record.number, record.body)))

    report = asyncio.run(main())
    assert sorted(bodies) == [(number, b"{}") for number in range(4)]
    assert not any(record.body for record in report.records)
