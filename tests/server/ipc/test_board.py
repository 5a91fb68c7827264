"""The board, read through one mapping of its memory and written through another."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ipc.board import Board, BoardSize, Heartbeat
from server.latency.cost import ImageCost
from server.latency.queueing import WorkEstimate

SIZE = BoardSize(engines=2, workers=3, slots=7)
MODELS = ("tiny", "dim")

numbers = st.floats(0, 1e6)
costs = st.builds(ImageCost, numbers, numbers, numbers, numbers, st.integers(0, 48), numbers)
works = st.builds(
    WorkEstimate, st.sampled_from(MODELS), costs, st.floats(0, 10), costs, st.integers(0, 2)
)


def two_mappings() -> tuple[Board, Board]:
    board = Board.create(SIZE)
    other = Board(board.descriptor, SIZE)
    os.close(board.descriptor)
    return board, other


@given(
    slots=st.dictionaries(st.integers(0, 6), st.tuples(works, st.sampled_from([None, 0, 1]))),
    due=st.floats(0, 10),
)
def test_every_process_reads_the_work_of_every_slot(
    slots: dict[int, tuple[WorkEstimate, int | None]], due: float
) -> None:
    writer, reader = two_mappings()
    for slot, (work, engine) in slots.items():
        writer.admit(slot, MODELS.index(work.model), work)
        if engine is not None:
            writer.submit(slot, engine)

    def expected(engine: int | None) -> list[WorkEstimate]:
        return [work for _, (work, has) in sorted(slots.items()) if has == engine]

    def unsubmitted(generation: int) -> list[WorkEstimate]:
        return [work for work in expected(None) if work.generation == generation]

    def is_due(work: WorkEstimate) -> bool:
        return work.due <= due

    for generation in range(3):
        found = reader.unsubmitted_work(MODELS, due, generation)
        assert found == list(filter(is_due, unsubmitted(generation)))
    for engine in (0, 1):
        assert reader.work_of(engine, MODELS, due) == list(filter(is_due, expected(engine)))
        assert reader.submitted_to(engine) == len(expected(engine))
    assert reader.submitted == len(expected(0)) + len(expected(1))
    for slot in slots:
        writer.release(slot)
    assert reader.submitted == 0
    assert reader.unsubmitted_work(MODELS, 10.0) == []


def test_the_slots_of_a_lost_process_are_cleared_and_no_others() -> None:
    parent, reader = two_mappings()
    work = WorkEstimate("tiny", ImageCost(1, 1, 1), 5.0)
    for slot in range(SIZE.slots):
        parent.admit(slot, 0, work)
        parent.submit(slot, 0)
    parent.clear_slots(1)
    kept = len(range(0, SIZE.slots, 3)) + len(range(2, SIZE.slots, 3))
    assert reader.submitted == len(reader.work_of(0, MODELS, 10.0)) == kept


def test_the_state_of_an_engine_is_read_as_it_is_written() -> None:
    parent, reader = two_mappings()
    engine = parent.engines[1]
    api = reader.engines[1]
    assert api.heartbeat() == Heartbeat()
    engine.beat(12.5, 1 << 40)
    assert api.heartbeat() == Heartbeat(beat=12.5, resident_bytes=1 << 40)
    engine.begin_batch(13.25, 0.5)
    assert api.heartbeat() == Heartbeat(12.5, 13.25, predicted_seconds=0.5, resident_bytes=1 << 40)
    engine.end_batch()
    assert api.heartbeat().batch_started == 0
    engine.set_batch_limit(4)
    assert api.heartbeat().batch_limit == 4
    assert reader.engines[0].heartbeat() == Heartbeat()


def test_a_cleared_engine_is_not_ready_but_expected() -> None:
    parent, api = two_mappings()
    parent.engines[0].set_ready(True)
    parent.engines[0].expect_ready(20.0)
    parent.engines[0].beat(12.5, 1)
    assert api.engines[0].ready
    parent.engines[0].clear()
    assert not api.engines[0].ready
    assert api.engines[0].expected_ready == 20.0
    assert api.engines[0].heartbeat() == Heartbeat()


def test_the_numbers_of_all_api_processes_add_up() -> None:
    writer, reader = two_mappings()
    for worker, size in enumerate((100, 20, 3)):
        writer.workers[worker].set_held_bytes(size)
        writer.workers[worker].set_requests(worker)
    assert (reader.held_bytes, reader.requests) == (123, 3)
    writer.workers[0].clear()
    assert (reader.held_bytes, reader.requests) == (23, 3)


def test_rows_do_not_overlap() -> None:
    writer, reader = two_mappings()
    second = ImageCost(8.0, 9.0, 10.0, 11.0, 12, 13.0)
    work = WorkEstimate("tiny", ImageCost(1.0, 2.0, 3.0, 4.0, 5, 6.0), due=7.0, second=second)
    for slot in range(SIZE.slots):
        writer.admit(slot, 0, work)
    for index, row in enumerate(writer.workers):
        row.beat(float(index + 1))
        row.set_connections(index)
        row.set_accepting(True)
    for index, engine in enumerate(writer.engines):
        engine.beat(10.0 + index, resident_bytes=index)
        engine.begin_batch(20.0 + index, predicted_seconds=0.5)
        engine.set_batch_limit(30 + index)
        engine.set_ready(bool(index))
        engine.expect_ready(40.0 + index)
    assert reader.unsubmitted_work(MODELS, due=8.0) == [work] * SIZE.slots
    assert [row.heartbeat().beat for row in reader.workers] == [1.0, 2.0, 3.0]
    assert [row.connections for row in reader.workers] == [0, 1, 2]
    beats = [engine.heartbeat() for engine in reader.engines]
    assert [beat.beat for beat in beats] == [10.0, 11.0, 12.0, 13.0]
    assert [beat.batch_started for beat in beats] == [20.0, 21.0, 22.0, 23.0]
    assert [beat.batch_limit for beat in beats] == [30, 31, 32, 33]
    assert [engine.ready for engine in reader.engines] == [False, True, True, True]
    assert [engine.expected_ready for engine in reader.engines] == [40.0, 41.0, 42.0, 43.0]


@pytest.mark.parametrize("size", [SIZE, BoardSize(1, 1, 1), BoardSize(8, 64, 4096)])
def test_the_memory_holds_the_last_row(size: BoardSize) -> None:
    board = Board.create(size)
    os.close(board.descriptor)
    work = WorkEstimate("tiny", ImageCost(1.0, 2.0, 3.0), due=7.0)
    board.admit(size.slots - 1, 0, work)
    last = size.engine_rows - 1
    board.submit(size.slots - 1, last)
    assert board.work_of(last, MODELS, due=8.0) == [work]
    board.engines[last].set_ready(True)
    assert board.work_of(last, MODELS, due=8.0) == [work]
