"""The shares of several API processes in the slots."""

import os

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.engine_client.slots import SlotShare
from server.ipc.board import Board, BoardSize
from server.latency.cost import ImageCost
from server.latency.queueing import WorkEstimate

WORK = WorkEstimate("tiny", ImageCost(1.0, 1.0, 1.0), due=1.0)
WORKERS = 3
TOTAL = 8


def new_board() -> Board:
    board = Board.create(BoardSize(engines=1, workers=WORKERS, slots=TOTAL))
    os.close(board.descriptor)
    return board


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_every_slot_belongs_to_one_process(workers: int) -> None:
    shares = [SlotShare(-1, TOTAL, worker, workers, new_board()) for worker in range(workers)]
    assert sorted(slot for share in shares for slot in share.free) == list(range(TOTAL))
    assert max(share.count for share in shares) - min(share.count for share in shares) <= 1


class Holds(RuleBasedStateMachine):
    """Leases of three processes take slots, submit and keep them; jobs end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.board = new_board()
        self.shares = [
            SlotShare(-1, TOTAL, worker, WORKERS, self.board) for worker in range(WORKERS)
        ]
        self.leased: list[tuple[SlotShare, int]] = []
        self.running: list[tuple[SlotShare, int]] = []

    @rule(worker=st.integers(0, WORKERS - 1))
    def take(self, worker: int) -> None:
        share = self.shares[worker]
        if share.free:
            slot = share.free.pop()
            held = {other for _, other in self.leased + self.running}
            assert slot not in held
            self.board.admit(slot, 0, WORK)
            self.leased.append((share, slot))

    @rule(data=st.data(), keep=st.booleans())
    def submit(self, data: st.DataObject, keep: bool) -> None:
        idle = [one for one in self.leased if one not in self.running]
        if idle:
            one = data.draw(st.sampled_from(idle))
            self.board.admit(one[1], 0, WORK)
            self.board.submit(one[1], 0)
            self.running.append(one)
            if keep:
                one[0].keep(one[1])
            else:
                self.leased.remove(one)

    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        if self.leased:
            share, slot = data.draw(st.sampled_from(self.leased))
            share.free_after_lease(slot)
            self.leased.remove((share, slot))

    @rule(data=st.data())
    def end_job(self, data: st.DataObject) -> None:
        if self.running:
            share, slot = data.draw(st.sampled_from(self.running))
            share.free_after_job(slot)
            self.running.remove((share, slot))

    @invariant()
    def each_slot_is_free_or_held(self) -> None:
        free = [slot for share in self.shares for slot in share.free]
        held = {slot for _, slot in self.leased + self.running}
        assert sorted([*free, *held]) == list(range(TOTAL))
        assert sum(share.used for share in self.shares) == len(held)

    @invariant()
    def the_board_counts_the_jobs(self) -> None:
        assert self.board.submitted == len(self.running)

    def teardown(self) -> None:
        for share, slot in self.running:
            share.free_after_job(slot)
        for share, slot in self.leased:
            share.free_after_lease(slot)
        assert sorted(slot for share in self.shares for slot in share.free) == list(range(TOTAL))
        assert not self.board.submitted
        assert not self.board.unsubmitted_work(["tiny"], due=2.0)


TestHolds = Holds.TestCase
