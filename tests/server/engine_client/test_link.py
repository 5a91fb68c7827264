"""One channel to one engine."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from server.engine_client.link import EngineLink, Result
from server.engine_client.slots import SlotShare
from server.errors import EngineLost
from server.ipc.board import Board, BoardSize
from server.ipc.messages import BatchDone, Cancel, Job, Outcome, Stop
from server.ipc.packing import pack
from tests.server.engine_client.links import (
    PLAIN,
    TOKENS,
    Server,
    cost_model,
    engine_up,
    serving,
    until,
)


def submit(server: Server, count: int) -> list[asyncio.Future[Result]]:
    """Submit so many jobs, each in a slot that its lease does not hold any more."""
    futures = []
    for _ in range(count):
        router = server.routers[0]
        work = router.estimate_work("tiny", PLAIN, None)
        slot = router.take_slot(work, router.engines.serving)
        job = Job(router.next_job_id(), slot, "tiny", tuple(PLAIN), 3, submitted=time.monotonic())
        futures.append(router.submit(job, work))
    return futures


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_each_outcome_goes_to_its_job(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            futures = submit(server, 5)
            await end.receive(5)
            first, second, third, *others = end.jobs
            assert server.workers[0].queued == 5
            end.answer([third, first])
            end.answer([second])
            results = await asyncio.gather(*futures[:3])
            slots = [result.outcome.classes for result in results]
            assert slots == [(first.slot,), (second.slot,), (third.slot,)]
            assert [result.batch.images for result in results] == [2, 1, 2]
            assert (server.workers[0].slots.used, server.workers[0].queued) == (2, 2)
            end.answer(others, cost_model(seconds=0.5))
            await asyncio.gather(*futures)
            (link,) = server.workers[0].links.values()
            assert link.cost_models["tiny"].coefficients.tokens == 0.5 / TOKENS

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


class RecordingTransport:
    """Takes what a link sends, and counts how often."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, content: bytes) -> None:
        self.writes.append(content)

    def abort(self) -> None: ...


def new_link(transport: RecordingTransport) -> tuple[EngineLink, SlotShare]:
    board = Board.create(BoardSize(engines=1, workers=1, slots=4))
    os.close(board.descriptor)
    slots = SlotShare(-1, 4, 0, 1, board)
    link = EngineLink(0, {}, slots, lambda: 1.0, lambda link: None)
    link.connection_made(cast("asyncio.Transport", transport))
    return link, slots


def test_jobs_of_one_turn_of_the_event_loop_are_sent_together() -> None:
    async def main() -> None:
        transport = RecordingTransport()
        link, _ = new_link(transport)
        jobs = [Job(number, number, "tiny", tuple(PLAIN), 3, 0.0) for number in range(4)]
        futures = [link.submit(job) for job in jobs[:3]]
        await asyncio.sleep(0)
        futures.append(link.submit(jobs[3]))
        futures[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        messages = [*map(pack, jobs), pack(Cancel(0))]
        assert b"".join(transport.writes) == b"".join(messages)
        assert transport.writes[0] == b"".join(messages[:3])

    asyncio.run(main())


@given(data=st.data(), large=st.booleans())
def test_messages_may_arrive_in_any_pieces(data: st.DataObject, large: bool) -> None:
    features = bytes(300_000) if large else b"abc"  # more than the buffer has at first
    sent = [
        BatchDone("tiny", (Outcome(1, features=features), Outcome(3))),
        BatchDone("", (Outcome(2),)),
        BatchDone("tiny", ()),
        BatchDone("tiny", (Outcome(4),)),
    ]
    stream = b"".join(map(pack, sent))
    cuts = data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=6, unique=True))

    async def main() -> None:
        link, slots = new_link(RecordingTransport())
        jobs = [Job(n, slots.free.pop(), "tiny", tuple(PLAIN), 3, 0.0) for n in (1, 2, 3, 4)]
        futures = [link.submit(job) for job in jobs]
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
            feed(link, stream[start:end])
        results = [future.result() for future in futures]
        assert [result.outcome.id for result in results] == [1, 2, 3, 4]
        assert results[0].outcome.features == features
        assert slots.used == 0
        assert [result.batch for result in results] == [sent[0], sent[1], sent[0], sent[3]]

    asyncio.run(main())


def feed(link: EngineLink, content: bytes) -> None:
    """Hand over ``content`` as an event loop does."""
    while content:
        buffer = link.get_buffer(-1)
        size = min(len(buffer), len(content))
        buffer[:size] = content[:size]
        link.buffer_updated(size)
        content = content[size:]


def test_a_cancelled_job_keeps_its_slot_until_the_engine_has_answered() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            cancelled, other = submit(server, 2)
            cancelled.cancel()
            await end.receive(3)
            assert end.cancelled == [end.jobs[0].id]
            end.answer([end.jobs[1]])
            await other
            assert server.workers[0].slots.used == 1
            end.answer([end.jobs[0]])
            await until(lambda: server.workers[0].slots.used == 0)

    asyncio.run(main())


@pytest.mark.parametrize(("restart", "wait"), [(40.0, 40.0), (-1.0, 5.0)], ids=["known", "unknown"])
def test_all_jobs_of_a_lost_engine_fail_at_once_and_keep_their_slots(
    restart: float, wait: float
) -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            (worker,) = server.workers
            lost: list[int] = []
            worker.on_lost = lost.append
            server.board.engines[0].expect_ready(time.monotonic() + restart)
            futures = submit(server, 3)
            futures[0].cancel()
            end.close()
            results = await asyncio.gather(*futures, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            for error in results[1:]:
                assert isinstance(error, EngineLost)
                assert error.retry_after == pytest.approx(wait, abs=5)
            assert lost == [0]
            assert not worker.ready
            assert (worker.slots.used, worker.queued) == (3, 0)
            worker.engine_ended(0)
            assert worker.slots.used == 0

    asyncio.run(main())


def test_what_an_engine_sent_before_its_end_is_delivered() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            lost: list[int] = []
            server.workers[0].on_lost = lost.append
            answered, unanswered = submit(server, 2)
            await end.receive(2)
            end.answer([end.jobs[0]])
            end.close()
            server.workers[0].engine_ended(0)  # before the event loop has read the answer
            assert not server.workers[0].ready
            assert (await answered).outcome.id == end.jobs[0].id
            with pytest.raises(EngineLost):
                await unanswered
            assert lost == []

    asyncio.run(main())


GARBAGE = b"\0\0\0\3abc"
WRONG = {
    "cannot be read": GARBAGE,
    "Stop was received, not BatchDone": pack(Stop()),
    "answered job 999, which": pack(BatchDone("tiny", (Outcome(999),))),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_answer_closes_the_channel(text: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            lost: list[int] = []
            server.workers[0].on_lost = lost.append
            (future,) = submit(server, 1)
            await end.receive(1)
            end.send(WRONG[text] + pack(BatchDone("tiny", (Outcome(end.jobs[0].id),))))
            with pytest.raises(EngineLost):
                await future
            assert lost == [0]
            assert server.workers[0].slots.used == 1
            with pytest.raises(AssertionError):
                await end.receive(2)  # it is closed
            server.workers[0].engine_ended(0)

    asyncio.run(main())
    assert text in caplog.text
    assert "engine 0" in caplog.text


def test_jobs_fail_when_the_api_process_closes_its_links() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            lost: list[Any] = []
            server.workers[0].on_lost = lost.append
            (future,) = submit(server, 1)
            await end.receive(1)
            server.workers[0].close()
            with pytest.raises(EngineLost):
                await future
            assert not server.workers[0].ready
            with pytest.raises(AssertionError):
                await end.receive(2)  # it is closed
            assert lost == []
            server.workers[0].slots.free_after_job(end.jobs[0].slot)

    asyncio.run(main())


def test_a_channel_whose_other_end_is_closed_already_is_lost() -> None:
    async def main() -> None:
        async with serving() as server:
            connection, other = socket.socketpair()
            other.close()
            await server.workers[0].engine_up(engine_up(), connection)
            await until(lambda: not server.workers[0].ready)
            server.workers[0].engine_ended(0)

    asyncio.run(main())
