"""Several clients of one engine: what each gets, and what the end of one means for the others."""

from __future__ import annotations

import socket
import time

import pytest

from server.engine import clients as clients_module
from server.engine.loading.model_loader import LoadedModel
from server.ipc.channel import ChannelClosed
from server.ipc.control import Detach, Detached
from server.ipc.messages import BatchDone, Cancel, Failure, Job, SlotsReady, Stop
from server.ipc.packing import BadMessage, pack
from tests.server.engine.held import FOUR, SLOTS, Client, Engine, job_ids, running
from tests.server.engine.processes import wait_until

COUNT = 25  # of jobs whose outcomes are more than the kernel keeps for a client of `running`


def a_job(number: int, model: str = "tiny") -> Job:
    return Job(number, number % SLOTS, model, (FOUR,), 3, time.monotonic())


def is_closed(client: Client) -> bool:
    """Whether the engine has closed the channel to the client."""
    try:
        client.channel.receive_all(timeout=0)
    except ChannelClosed:
        return True
    return False


def answered(engine: Engine, client: int, number: int) -> None:
    """Check that a new job of a client is answered."""
    engine.clients[client].submit(number)
    assert job_ids(engine.clients[client].next_reply()) == [number]


def test_each_client_gets_its_own_outcomes_and_the_numbers_of_the_whole_batch(
    tiny: LoadedModel,
) -> None:
    with running(tiny, held=2, clients=3) as engine:
        engine.launch(10)
        engine.launch(11)  # the loop waits for the device now, so that the others come together
        engine.clients[1].submit(1, 2)
        engine.clients[0].submit(3)
        engine.clients[2].submit(4)
        engine.release()
        assert [job_ids(engine.next_reply()) for _ in range(2)] == [[10], [11]]
        replies = [client.next_reply() for client in engine.clients]
    assert list(map(job_ids, replies)) == [[3], [1, 2], [4]]
    for reply in replies:
        assert (reply.images, reply.tokens) == (4, 4 * 17)
        assert reply.forward_seconds == replies[0].forward_seconds > 0
    assert [batch.images for batch in engine.counted] == [1, 1, 4]
    assert sorted(job_ids(engine.counted[-1])) == [1, 2, 3, 4]


def test_all_clients_get_the_cost_models_but_not_with_every_batch(tiny: LoadedModel) -> None:
    with running(tiny, held=0, clients=2) as engine:
        busy, idle = engine.clients
        told = [client.channel.receive() for client in engine.clients]  # when they were attached
        assert [(news.model, news.outcomes, news.images) for news in told] == [("tiny", (), 0)] * 2
        start = told[0].cost_model
        assert start is not None and told[1].cost_model == start
        batches = []
        for number in range(8):
            busy.submit(number)
            batches.append(busy.next_reply())
        first = idle.channel.receive()
        assert first == BatchDone("tiny", (), cost_model=batches[0].cost_model)
        assert batches[0].cost_model not in (None, start)
        # The last change is told although no batch follows.
        last = calibrated(engine)
        news = first
        while news.cost_model != last:
            news = idle.channel.receive()
            assert isinstance(news, BatchDone) and not news.outcomes


def calibrated(engine: Engine) -> object:
    return engine.models["tiny"].calibration.cost_model


def test_a_client_that_does_not_read_does_not_hold_up_the_others(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients_module, "_FLUSH_SECONDS", 0.1)
    with running(tiny, held=0, clients=2) as engine:
        stopped = engine.clients[0]
        for number in range(COUNT):
            stopped.connection.sendall(pack(a_job(number)))
            answered(engine, 1, COUNT)
        assert has_unsent(engine)


def has_unsent(engine: Engine) -> bool:
    """Whether the engine keeps bytes for a client."""
    return any(client.channel.has_unsent for client in engine.loop_clients._open.values())


def test_a_client_that_reads_late_gets_everything(tiny: LoadedModel) -> None:
    with running(tiny, held=0, clients=2) as engine:
        late = engine.clients[0]
        for number in range(COUNT):
            late.connection.sendall(pack(a_job(number)))
            answered(engine, 1, COUNT)
        assert has_unsent(engine)
        found: list[int] = []
        while len(found) < COUNT:
            found += job_ids(late.next_reply())
        assert found == list(range(COUNT))
        wait_until(lambda: not has_unsent(engine))


def test_what_is_left_is_sent_before_the_engine_ends(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients_module, "_FLUSH_SECONDS", 30.0)  # this thread may read late
    with running(tiny, held=0, clients=2) as engine:
        late = engine.clients[0]
        for number in range(COUNT):
            late.connection.sendall(pack(a_job(number)))
            answered(engine, 1, COUNT)
        engine.parent.send(Stop())
        assert [job_ids(late.next_reply()) for _ in range(COUNT)] == [[n] for n in range(COUNT)]


def test_a_detached_client_loses_its_queued_jobs_and_those_in_flight_end_first(
    tiny: LoadedModel,
) -> None:
    with running(tiny, held=2, clients=2) as engine:
        engine.launch(0, 1)
        engine.launch(2, 3)  # in flight behind it
        engine.submit(4, 5)  # is queued
        engine.clients[1].submit(6)
        engine.parent.send(Detach(0))
        first, second = engine.runner.batches
        first.released.set()
        wait_until(lambda: is_closed(engine.clients[0]))
        assert engine.parent.channel.receive_all(timeout=0.05) == []  # it still has 2 and 3
        second.released.set()
        assert engine.parent.channel.receive() == Detached(0)
        assert job_ids(engine.clients[1].next_reply()) == [6]
        assert [batch.images for batch in engine.runner.batches] == [2, 2, 1]


def test_a_batch_in_flight_may_have_jobs_of_a_detached_client(tiny: LoadedModel) -> None:
    with running(tiny, held=3, clients=2) as engine:
        engine.launch(10)
        engine.launch(11)
        engine.submit(1)
        engine.clients[1].submit(2)
        engine.runner.batches[0].released.set()
        wait_until(lambda: len(engine.runner.batches) == 3)
        engine.parent.send(Detach(0))
        engine.runner.batches[1].released.set()
        wait_until(lambda: is_closed(engine.clients[0]))
        assert engine.parent.channel.receive_all(timeout=0.05) == []
        engine.release()
        assert engine.parent.channel.receive() == Detached(0)
        assert job_ids(engine.clients[1].next_reply()) == [2]
    assert [batch.images for batch in engine.counted] == [1, 1, 2]


def test_slots_are_not_read_after_the_client_is_detached(tiny: LoadedModel) -> None:
    """A batch that fails reads its slots again: until then its client is not detached."""
    with running(tiny, held=1, clients=2) as engine:
        engine.launch(0, 1)
        (batch,) = engine.runner.batches
        batch.fails = True
        engine.parent.send(Detach(0))
        wait_until(lambda: is_closed(engine.clients[0]))
        batch.released.set()
        assert engine.parent.channel.receive() == Detached(0)
        assert [batch.images for batch in engine.runner.batches] == [2, 1, 1]
        answered(engine, 1, 2)
        assert len(engine.runner.batches) == 4


def test_the_end_of_a_client_is_told_to_the_parent_only_when_it_asks(tiny: LoadedModel) -> None:
    with running(tiny, held=0, clients=2) as engine:
        answered(engine, 0, 0)
        engine.clients[0].connection.close()
        answered(engine, 1, 1)
        assert engine.parent.channel.receive_all(timeout=0) == []
        engine.parent.send(Detach(0))
        assert engine.parent.channel.receive() == Detached(0)
        engine.parent.send(Detach(7))  # was never attached
        assert engine.parent.channel.receive() == Detached(7)


def test_a_client_that_ends_with_jobs_in_flight_costs_no_other_its_answers(
    tiny: LoadedModel,
) -> None:
    with running(tiny, held=2, clients=2) as engine:
        engine.launch(0, 1)
        engine.launch(2)
        engine.submit(3)
        engine.clients[1].submit(4)
        engine.clients[0].connection.close()
        engine.release()
        assert job_ids(engine.clients[1].next_reply()) == [4]
        answered(engine, 1, 5)


def test_clients_are_attached_at_any_time_and_may_follow_another(tiny: LoadedModel) -> None:
    with running(tiny, held=1, clients=1) as engine:
        engine.launch(0)
        with engine.parent.attach(1) as second, engine.parent.attach(0) as successor:
            wait_until(lambda: is_closed(engine.clients[0]))  # the same worker is attached again
            engine.clients = [Client(successor), Client(second)]
            engine.runner.batches[0].released.set()
            answered(engine, 0, 1)
            answered(engine, 1, 2)
            engine.parent.send(Detach(0))
            assert engine.parent.channel.receive() == Detached(0)
            # A cost model may have arrived before the end.
            wait_until(lambda: is_closed(engine.clients[0]))
            answered(engine, 1, 3)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0\3abc",
        b"\x7f\xff\xff\xff",
        pack(Stop()),
        pack(1, has_descriptor=True),
        pack(a_job(0)) + pack(a_job(0)),
        pack(a_job(1)),
        pack(a_job(0, "unknown")),
        pack(a_job(0)._replace(choices=())),
    ],
    ids=[
        "no pickle",
        "too long",
        "no job",
        "no descriptor",
        "twice",
        "of another",
        "model",
        "no schedule",
    ],
)
def test_garbage_from_one_client_is_the_end_of_that_client_alone(
    tiny: LoadedModel, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tiny, held=1, clients=2) as engine:
        engine.launch(1, client=1)
        engine.clients[0].connection.sendall(pack(a_job(2)) + garbage)
        wait_until(lambda: is_closed(engine.clients[0]))
        engine.release()
        assert job_ids(engine.clients[1].next_reply()) == [1]
        answered(engine, 1, 3)
        engine.parent.send(Detach(0))
        assert engine.parent.channel.receive() == Detached(0)
        assert [batch.images for batch in engine.runner.batches] == [1, 1]
    assert "API process 0 is dropped: " in caplog.text


def test_a_job_is_cancelled_only_by_the_client_that_sent_it(tiny: LoadedModel) -> None:
    with running(tiny, held=2, clients=2) as engine:
        engine.launch(10)
        engine.launch(11)
        engine.clients[1].submit(1)
        engine.submit(2)
        engine.clients[0].connection.sendall(pack(Cancel(1)) + pack(Cancel(2)))
        engine.release()
        found: dict[int, Failure | None] = {}
        while len(found) < 3:
            found |= {outcome.id: outcome.failure for outcome in engine.next_reply().outcomes}
        assert found == {10: None, 11: None, 2: Failure.CANCELLED}
        (outcome,) = engine.clients[1].next_reply().outcomes
        assert (outcome.id, outcome.failure) == (1, None)


def test_all_jobs_run_before_the_engine_stops(tiny: LoadedModel) -> None:
    with running(tiny, held=1, clients=2) as engine:
        engine.launch(0)
        engine.submit(1)
        engine.clients[1].submit(2)
        engine.parent.send(Stop())
        engine.runner.batches[0].released.set()
        engine.thread.join(30)
        assert job_ids(engine.next_reply()) == [0]
        assert job_ids(engine.next_reply()) == [1]
        assert job_ids(engine.clients[1].next_reply()) == [2]


def test_the_end_of_the_parent_ends_the_engine(tiny: LoadedModel) -> None:
    with running(tiny, held=0, clients=2) as engine:
        answered(engine, 0, 0)
        engine.parent.control.shutdown(socket.SHUT_RDWR)
        engine.thread.join(30)
        assert [type(error) for error in engine.ended] == [ChannelClosed]


@pytest.mark.parametrize("message", [SlotsReady(1), a_job(0)])
def test_a_wrong_message_of_the_parent_ends_the_engine(tiny: LoadedModel, message: object) -> None:
    with running(tiny, held=0) as engine:
        engine.parent.send(message)
        engine.thread.join(30)
        assert [type(error) for error in engine.ended] == [BadMessage]
