from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from server.api.pipeline.admission import Admission, BodyLimits
from server.errors import Overloaded, SlowBody, TooLarge
from server.latency.cost import ImageCost
from server.latency.queueing import WorkEstimate
from server.media.modality import Modality
from tests.server.api.pipeline.fakes import FakeEngines, FakeRouter, new_board, request_of

IMAGE = Modality.IMAGE
WORK = WorkEstimate("tiny", ImageCost(1.0, 1.0, 1.0), due=0.0)


def admission_of(router: FakeRouter | None = None, **limits: float) -> Admission:
    """One whose limits are those of images; a sound may be twice as large."""
    values: dict[str, Any] = {"max_bytes": 100, "timeout_seconds": 30}
    of_images = BodyLimits(**(values | limits))
    of_sounds = replace(of_images, max_bytes=2 * of_images.max_bytes)
    return Admission(
        router or FakeRouter(),  # type: ignore[arg-type]
        {Modality.IMAGE: of_images, Modality.AUDIO: of_sounds},
        max_total_bytes=150,
    )


class TestReservation:
    def test_a_body_over_its_limit_is_refused(self):
        with admission_of().reserve(IMAGE) as reservation:
            reservation.add(100)
            with pytest.raises(TooLarge, match="more than 100 bytes") as caught:
                reservation.add(1)
        assert caught.value.extensions == {"limit": 100}

    def test_released_bytes_still_count_against_the_limit_of_the_body(self):
        with admission_of().reserve(IMAGE) as reservation:
            reservation.add(100)
            reservation.release(100)
            with pytest.raises(TooLarge):
                reservation.add(1)

    def test_bodies_over_their_common_limit_are_refused_until_bytes_are_released(self):
        admission = admission_of()
        with admission.reserve(IMAGE) as first, admission.reserve(IMAGE) as second:
            first.add(100)
            with pytest.raises(Overloaded) as caught:
                second.add(60)
            assert caught.value.extensions == {"reason": "memory-full"}
            assert caught.value.retry_after == 7
            assert admission.bytes_held == 100
            first.release(100)
            second.add(40)
            assert admission.bytes_held == 40

    def test_bytes_of_other_api_processes_count(self):
        board = new_board(workers=2)
        mine, other = (
            admission_of(FakeRouter(engines=FakeEngines(board=board, worker=worker)))
            for worker in (0, 1)
        )
        with mine.reserve(IMAGE) as first, other.reserve(IMAGE) as second:
            first.add(100)
            with pytest.raises(Overloaded, match="too many bytes"):
                second.hold(51)
            second.hold(50)
            assert (mine.bytes_held, other.bytes_held, board.held_bytes) == (100, 50, 150)
        assert board.held_bytes == 0

    def test_all_bytes_are_released_when_the_block_is_left_by_an_error(self):
        admission = admission_of()
        with pytest.raises(ZeroDivisionError), admission.reserve(IMAGE) as reservation:
            reservation.add(80)
            reservation.release(30)
            raise ZeroDivisionError
        assert admission.bytes_held == 0


class TestAdmit:
    def test_it_holds_a_slot_and_counts_the_request(self):
        router = FakeRouter(slots=1)
        admission = admission_of(router)
        with admission.admit(request_of([]), IMAGE, None, None):
            assert (router.slots, admission.admitted) == (0, 1)
            assert router.engines.board.requests == 1
            with pytest.raises(Overloaded), admission.admit(request_of([]), IMAGE, None, None):
                pass
            assert admission.admitted == 1
        assert (router.slots, admission.admitted) == (1, 0)
        assert router.engines.board.requests == 0

    def test_nothing_is_admitted_before_the_models_are_loaded(self):
        with pytest.raises(Overloaded) as caught:
            admission_of(FakeRouter(ready=False)).check_open()
        assert caught.value.extensions == {"reason": "not-ready"}

    def test_check_room_refuses_when_no_slot_is_free(self):
        with pytest.raises(Overloaded, match="no slot"):
            admission_of(FakeRouter(slots=0)).check_room()

    @pytest.mark.parametrize("content_length", ["100", "nonsense", "²"])
    def test_a_content_length_within_the_limit_or_unreadable_is_admitted(self, content_length):
        admission = admission_of()
        request = request_of([])
        request.scope["headers"] = [(b"content-length", content_length.encode("latin-1"))]
        with admission.admit(request, IMAGE, None, None):
            assert admission.admitted == 1

    def test_a_content_length_over_the_limit_is_refused(self):
        request = request_of([], {"content-length": "101"})
        with (
            pytest.raises(TooLarge, match="101 bytes; allowed are 100"),
            admission_of().admit(request, IMAGE, None, None),
        ):
            pass


class TestDeadline:
    def test_a_deadline_that_cannot_be_met_is_refused(self):
        admission = admission_of(FakeRouter(needed_seconds=60))
        with pytest.raises(Overloaded, match="would take 60 s") as caught:
            admission.check_deadline(WORK, time.monotonic() + 10)
        assert caught.value.extensions == {"reason": "deadline"}
        assert caught.value.retry_after is not None
        assert 45 <= caught.value.retry_after <= 60

    def test_a_deadline_that_can_be_met_is_accepted(self):
        admission_of(FakeRouter(needed_seconds=60)).check_deadline(WORK, time.monotonic() + 90)

    def test_a_deadline_in_the_past_is_left_to_the_caller(self):
        admission_of(FakeRouter(needed_seconds=60)).check_deadline(WORK, time.monotonic() - 1)

    def test_no_deadline_is_always_accepted(self):
        admission_of(FakeRouter(needed_seconds=60)).check_deadline(WORK, None)


class TestReadBody:
    def test_chunks_are_counted_and_passed_on(self):
        admission = admission_of()
        chunks: list[bytes] = []

        async def main() -> None:
            with admission.reserve(IMAGE) as reservation:
                request = request_of([b"abc", b"de"])
                await admission.read_body(request, reservation, chunks.append)
                assert admission.bytes_held == 5

        asyncio.run(main())
        assert b"".join(chunks) == b"abcde"

    def test_a_body_that_does_not_arrive_times_out(self):
        admission = admission_of(timeout_seconds=0.02)
        with pytest.raises(SlowBody, match=r"within 0\.02 s"):
            asyncio.run(read(admission))

    def test_a_drain_shortens_the_timeout(self):
        admission = admission_of()

        async def main() -> None:
            reading = asyncio.create_task(read(admission))
            await asyncio.sleep(0)
            admission.stop_admitting(body_seconds=0.02)
            await asyncio.wait_for(reading, 10)

        with pytest.raises(SlowBody, match="before the server stopped"):
            asyncio.run(main())


async def read(admission: Admission) -> None:
    """Read a body that never arrives in full."""
    with admission.reserve(IMAGE) as reservation:
        await admission.read_body(request_of([b"abc"], complete=False), reservation, len)


class TestDrain:
    def test_a_draining_server_admits_nothing(self):
        admission = admission_of()

        async def main() -> None:
            admission.stop_admitting(body_seconds=1)

        asyncio.run(main())
        with pytest.raises(Overloaded, match="stopping") as caught:
            admission.check_open()
        assert caught.value.extensions == {"reason": "draining"}

    def test_it_waits_until_no_request_is_in_flight(self):
        admission = admission_of()

        async def main() -> bool:
            with admission.admit(request_of([]), IMAGE, None, None):
                waiting = asyncio.create_task(admission.wait_until_drained(30))
                await asyncio.sleep(0.05)
                assert not waiting.done()
            return await waiting

        assert asyncio.run(main())

    def test_it_gives_up_after_its_time(self, caplog):
        admission = admission_of()

        async def main() -> bool:
            with admission.admit(request_of([]), IMAGE, None, None):
                return await admission.wait_until_drained(0.05)

        assert not asyncio.run(main())
        assert "1 requests were cut off" in caplog.text

    def test_it_gives_up_when_it_is_forced(self):
        admission = admission_of()

        async def main() -> bool:
            forced = asyncio.Event()
            forced.set()
            with admission.admit(request_of([]), IMAGE, None, None):
                return await asyncio.wait_for(admission.wait_until_drained(60, forced), 10)

        assert not asyncio.run(main())
