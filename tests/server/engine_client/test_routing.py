"""Predictions, and the choice among engines, from the queue of all API processes."""

import asyncio
import contextlib
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from server.engine_client import engines as engines_module
from server.engine_client import routing
from server.engine_client.routing import Router
from server.errors import EngineLost, Overloaded, Refusal
from server.latency.queueing import WorkEstimate
from tests.server.engine_client.links import (
    MAX_BATCH,
    PLAIN,
    SIZE,
    TINY,
    EngineEnd,
    cost_model,
    serving,
    until,
)
from tome_core.schedule import Schedule

BLANK = np.zeros(SIZE, np.uint8)
NOW = 1000.0


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is `NOW` for predictions; the event loop has its own."""
    for module in (routing, engines_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: NOW))


def ask(router: Router, count: int, deadline: float | None = None) -> list[asyncio.Task[None]]:
    """Run so many images, of which the work counts from now on."""

    async def run() -> None:
        work = router.estimate_work("tiny", PLAIN, deadline)
        with router.lease(work) as lease:
            lease.write(BLANK)
            await lease.submit("tiny", PLAIN, 3, deadline)

    return [asyncio.create_task(run()) for _ in range(count)]


def answer(*ends: EngineEnd) -> None:
    """Answer all jobs that have arrived."""
    for end in ends:
        end.answer(end.jobs)


def last(router: Router) -> WorkEstimate:
    """Return work that is due after all other."""
    return router.estimate_work("tiny", PLAIN, deadline=math.inf)


def test_an_image_goes_to_the_engine_that_would_complete_it_first() -> None:
    """The second engine is four times as fast as the first one."""

    async def main() -> None:
        async with serving(engines=2, slots=10) as server:
            (router,) = server.routers
            (slow,) = await server.start(0, seconds=0.04)
            (fast,) = await server.start(1, seconds=0.01)
            assert router.seconds_to_complete(last(router)) == pytest.approx(0.01)
            # Not before one of the engines has run its half of them.
            assert router.seconds_to_complete(last(router), images=5) == pytest.approx(0.03)
            asking = []
            for _ in range(10):
                asking += ask(router, 1)
                await asyncio.sleep(0)
            await slow.receive(2)
            await fast.receive(8)
            assert router.seconds_to_complete(last(router)) == pytest.approx(0.09)
            answer(slow, fast)
            await asyncio.gather(*asking)

    asyncio.run(main())


def test_an_idle_engine_comes_before_one_whose_images_are_all_due_later() -> None:
    """The choice is that of two processes, of which each submits every other image."""

    async def main() -> None:
        async with serving(engines=2, workers=2) as server:
            first = await server.start(0)
            second = await server.start(1)
            soon = time.monotonic() + 500
            later = soon + 500
            asking = ask(server.routers[0], 1, deadline=later)
            await until(lambda: server.board.submitted_to(0) == 1)
            asking += ask(server.routers[1], 1, deadline=later)
            await until(lambda: server.board.submitted_to(1) == 1)
            asking += ask(server.routers[0], 1, deadline=soon)
            await until(lambda: server.board.submitted == 3)
            asking += ask(server.routers[1], 1, deadline=soon)
            await until(lambda: server.board.submitted == 4)
            assert [server.board.submitted_to(engine) for engine in (0, 1)] == [2, 2]
            await first[0].receive(2)
            await second[1].receive(2)
            answer(*first, *second)
            await asyncio.gather(*asking)

    asyncio.run(main())


def test_each_process_sees_the_whole_queue() -> None:
    async def main() -> None:
        async with serving(workers=2, slots=16) as server:
            ends = await server.start(seconds=0.1)
            mine, other = server.routers
            assert mine.seconds_to_complete(last(mine)) == pytest.approx(0.1)
            asking = ask(other, 5)
            await ends[1].receive(5)
            for router in server.routers:
                assert router.engines.queued == 5
                assert router.seconds_to_complete(last(router)) == pytest.approx(0.6)
            soon = mine.estimate_work("tiny", PLAIN, deadline=0.0)
            assert mine.seconds_to_complete(soon) == pytest.approx(0.1)
            with other.lease(soon), other.lease(soon):
                # Images that are not submitted yet count as well.
                assert mine.seconds_to_complete(soon) == pytest.approx(0.3)
                assert mine.seconds_to_complete(last(mine)) == pytest.approx(0.8)
            answer(ends[1])
            await asyncio.gather(*asking)
            for router in server.routers:
                assert router.seconds_to_complete(last(router)) == pytest.approx(0.1)

    asyncio.run(main())


def test_images_that_are_not_submitted_yet_are_divided_among_the_engines() -> None:
    async def main() -> None:
        async with serving(engines=2, workers=2) as server:
            await server.start(0, seconds=0.1)
            await server.start(1, seconds=0.1)
            mine, other = server.routers
            with contextlib.ExitStack() as stack:
                for _ in range(4):
                    stack.enter_context(other.lease(last(other)))
                assert mine.seconds_to_complete(last(mine)) == pytest.approx(0.3)

    asyncio.run(main())


def test_an_image_is_not_ahead_of_itself() -> None:
    """If it were, it would seem to take 0.2 s on the first engine."""

    async def main() -> None:
        async with serving(engines=2) as server:
            (router,) = server.routers
            ends = [*await server.start(0, seconds=0.1), *await server.start(1, seconds=0.15)]
            asking = ask(router, 1)
            await ends[0].receive(1)
            answer(ends[0])
            await asyncio.gather(*asking)

    asyncio.run(main())


@pytest.mark.usefixtures("stopped_clock")
def test_the_current_batch_counts_as_far_as_it_has_run() -> None:
    async def main() -> None:
        async with serving() as server:
            (router,) = server.routers
            (end,) = await server.start(seconds=10.0)
            asking = ask(router, 3)
            await end.receive(3)
            row = server.board.engines[0]
            row.begin_batch(NOW - 8.0, predicted_seconds=20.0)
            assert router.seconds_to_complete(last(router)) == pytest.approx(32)
            assert router.retry_after() in (22, 23)  # it is rounded up
            # What is due before all others waits for the current batch alone.
            first = last(router)._replace(due=0.0)
            assert router.seconds_to_complete(first) == pytest.approx(22)
            row.end_batch()
            answer(end)
            await asyncio.gather(*asking)

    asyncio.run(main())


def test_the_cost_model_is_the_latest_that_any_batch_has_brought() -> None:
    async def main() -> None:
        async with serving(workers=2) as server:
            ends = await server.start(seconds=0.1)
            for end in ends:  # the second process has no job in that batch
                end.answer([], cost_model(seconds=0.7))
            for router in server.routers:
                await until(
                    lambda router=router: router.seconds_to_complete(last(router)) > 0.6  # type: ignore[misc]
                )

    asyncio.run(main())


def test_a_retry_is_due_when_the_whole_queue_is_run() -> None:
    async def main() -> None:
        async with serving(workers=2, slots=2 * MAX_BATCH) as server:
            ends = await server.start(seconds=5.0)
            mine, other = server.routers
            asking = ask(other, MAX_BATCH)
            await ends[1].receive(MAX_BATCH)
            assert mine.retry_after() == 20
            answer(ends[1])
            await asyncio.gather(*asking)

    asyncio.run(main())


@pytest.mark.usefixtures("stopped_clock")
def test_a_retry_while_no_engine_is_ready_is_due_when_one_may_be() -> None:
    async def main() -> None:
        async with serving(engines=3) as server:
            (router,) = server.routers
            for engine, seconds in enumerate((30.0, 12.0, 5.0)):
                server.board.engines[engine].expect_ready(NOW + seconds)
            router.engines.engine_given_up(2)
            assert router.retry_after() == 12
            assert router.seconds_to_complete(
                WorkEstimate("tiny", TINY.geometry.image_cost(PLAIN[0]), NOW)
            ) == pytest.approx(0.0)
            with pytest.raises(Overloaded) as caught, router.lease():
                pass
            assert caught.value.reason is Refusal.NOT_READY
            assert caught.value.retry_after == 12

    asyncio.run(main())


def test_a_process_is_full_when_its_share_is() -> None:
    async def main() -> None:
        async with serving(workers=2, slots=5) as server:
            await server.start()
            mine, other = server.routers
            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    stack.enter_context(mine.lease())
                assert mine.free_slots == 0
                with pytest.raises(Overloaded, match="3 images are waiting") as caught:
                    stack.enter_context(mine.lease())
                assert caught.value.reason is Refusal.QUEUE_FULL
                assert other.free_slots == 2
                other.check_room()

    asyncio.run(main())


def test_no_two_processes_use_the_same_job_id() -> None:
    async def main() -> None:
        async with serving(workers=3) as server:
            ids = [router.next_job_id() for router in server.routers * 4]
            assert len(set(ids)) == len(ids)

    asyncio.run(main())


def test_an_image_whose_work_was_not_known_counts_from_its_submission() -> None:
    async def main() -> None:
        async with serving(workers=2) as server:
            ends = await server.start(seconds=0.1)
            mine, other = server.routers
            with mine.lease() as lease:
                assert other.seconds_to_complete(last(other)) == pytest.approx(0.1)
                running = lease.submit("tiny", [Schedule.constant(0)], 3)
                await ends[0].receive(1)
                assert other.seconds_to_complete(last(other)) == pytest.approx(0.2)
                answer(ends[0])
                await running
                assert other.seconds_to_complete(last(other)) == pytest.approx(0.1)

    asyncio.run(main())


def test_a_slot_stays_with_its_request_if_no_engine_is_ready() -> None:
    async def main() -> None:
        async with serving() as server:
            (router,) = server.routers
            (end,) = await server.start()
            with router.lease(last(router)) as lease:
                end.close()
                await until(lambda: not router.ready)
                with pytest.raises(EngineLost) as caught:
                    await lease.submit("tiny", PLAIN, 3)
                assert caught.value.retry_after
                assert not lease.submitted
                assert router.engines.slots.used == 1
            assert router.engines.slots.used == 0
            router.engines.engine_ended(0)

    asyncio.run(main())
