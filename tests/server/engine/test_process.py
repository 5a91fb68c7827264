"""A real engine process with several clients, and without its parent."""

from __future__ import annotations

import time
from pathlib import Path

from server.engine.heartbeat import EXIT_ORPHAN
from server.ipc.channel import Channel
from server.ipc.control import Detach, Detached
from server.ipc.messages import Job, Outcome
from server.ipc.packing import pack
from tests.server.engine import faulty
from tests.server.engine.loops import next_reply
from tests.server.engine.processes import running_engine, wait_until
from tome_core.schedule import Schedule

FAULTY = "tests.server.engine.faulty"
FOUR = Schedule.constant(4)


def a_job(number: int, slot: int) -> Job:
    return Job(number, slot, "tiny", (FOUR,), 3, time.monotonic())


def outcomes(channel: Channel, count: int) -> dict[int, Outcome]:
    """The outcomes of the next ``count`` jobs."""
    found: dict[int, Outcome] = {}
    while len(found) < count:
        found |= {outcome.id: outcome for outcome in next_reply(channel).outcomes}
    return found


def test_three_clients_until_the_parent_ends(tiny_folder: Path) -> None:
    with running_engine(tiny_folder, FAULTY, exit_code=None) as engine:
        for slot in range(4):
            engine.write(slot, 50 * slot)
        first, second, third = [engine.parent.attach(worker) for worker in range(3)]
        with first, second, third:
            # The same images for two clients, which each get the outcomes of their own jobs.
            first.sendall(b"".join(pack(a_job(3 * slot, slot)) for slot in range(4)))
            second.sendall(b"".join(pack(a_job(3 * slot + 1, slot)) for slot in range(4)))
            of_first = outcomes(Channel(first), 4)
            of_second = outcomes(Channel(second), 4)
            assert sorted(of_first) == [0, 3, 6, 9]
            assert sorted(of_second) == [1, 4, 7, 10]
            for number, outcome in of_first.items():
                assert outcome.failure is None
                assert of_second[number + 1].classes == outcome.classes
            # The third ends while its job runs and others are queued: so many that the engine is
            # still at them however late this process is. They end with their client.
            engine.write(8, faulty.SLOW)
            third.sendall(b"".join(pack(a_job(number, 8)) for number in range(2, 602, 3)))
            wait_until(lambda: engine.board.engines[0].heartbeat().batch_started > 0)
            third.close()
            engine.parent.send(Detach(2))
            first.sendall(pack(a_job(12, 0)))
            assert list(outcomes(Channel(first), 1)) == [12]
            assert engine.parent.channel.receive() == Detached(2)
            # Garbage of the second costs the first nothing, and a new process follows it.
            second.sendall(b"\xff" * 100)
            engine.parent.send(Detach(1))
            assert engine.parent.channel.receive() == Detached(1)
            with engine.parent.attach(1) as successor:
                successor.sendall(pack(a_job(1, 1)))
                assert outcomes(Channel(successor), 1)[1].classes == of_second[4].classes
            # Without its parent the engine ends at once, in the middle of a batch.
            engine.write(0, faulty.HANG)
            first.sendall(pack(a_job(15, 0)))
            wait_until(lambda: engine.board.engines[0].heartbeat().batch_started > 0)
            engine.parent.control.close()
            assert engine.process.wait(30) == EXIT_ORPHAN
