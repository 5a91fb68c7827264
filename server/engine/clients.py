"""The engine's clients: its channels to the parent process and to each API process.

Jobs go from here to the scheduler, and outcomes come back to the client whose jobs they are.
Nothing here waits for a client: what an API process does not read is kept, and what it sends is
read in turn with all others. An API process that ends, or sends what is no message, loses its own
jobs.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.engine.cost_model_news import CostModelNews
from server.engine.scheduling.scheduler import Scheduler
from server.ipc.channel import Channel, ChannelClosed, wait_for
from server.ipc.control import Attach, Detach, Detached
from server.ipc.messages import BatchDone, Cancel, Failure, Job, Outcome, Stop
from server.ipc.packing import BadMessage, WithDescriptor, pack

log = logging.getLogger("tome.engine")

# Clients that read get the last outcomes within milliseconds.
_FLUSH_SECONDS = 2.0


@dataclass(eq=False)
class _Client:
    """One API process.

    Attributes:
        worker: its index.
        jobs: how many of its jobs the engine has.
        closed: whether its channel is closed. Its jobs in flight still read its slots.
        is_detaching: whether the parent waits until the engine has none of its jobs.
    """

    worker: int
    channel: Channel
    jobs: int = 0
    closed: bool = False
    is_detaching: bool = False


class Clients:
    """The parent process and the attached API processes.

    Args:
        control: the channel to the parent, with descriptors. What has arrived is handled here.
        scheduler: gets the jobs, and knows the latest cost models.

    Raises:
        ChannelClosed, BadMessage: as `receive` does.

    Attributes:
        stopping: whether the parent has told the engine to end once no job is left.
    """

    def __init__(self, control: Channel, scheduler: Scheduler) -> None:
        self._control = control
        self._scheduler = scheduler
        self._news = CostModelNews()
        self._workers: dict[int, _Client] = {}  # by index, until they are detached
        self._open: dict[int, _Client] = {}  # by the descriptor of the channel
        self._jobs: dict[int, _Client] = {}  # by the ID of the job
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self.stopping = False
        self._handle_control(control.receive_all(timeout=0))

    def receive(self, timeout: float | None) -> None:
        """Handle the messages that have arrived; if there are none, wait for some.

        Args:
            timeout: most seconds to wait; None for no limit.

        Raises:
            ChannelClosed: the parent process has ended.
            BadMessage: the parent sent what is no message to an engine.
        """
        was_stopping = self.stopping
        if timeout is None:
            timeout = self._news.seconds_to_next(time.monotonic())
        self._receive_once(timeout)
        if self.stopping and not was_stopping:
            self._receive_once(0.0)  # jobs that were sent before the parent told the engine to stop
        due = self._news.take_due(time.monotonic())
        if due:
            self._send_cost_models(due, self._open.values())

    def reply(self, batch: BatchDone) -> None:
        """Send to each client the outcomes of its own jobs, which end with that.

        Clients also get the latest cost model of the batch, but not with every batch.
        """
        shares: dict[_Client, list[Outcome]] = {}
        for outcome in batch.outcomes:
            client = self._jobs.pop(outcome.id)
            client.jobs -= 1
            shares.setdefault(client, []).append(outcome)
        is_due = bool(batch.model) and self._news.is_due(batch.model, time.monotonic())
        if is_due:
            others = [client for client in self._open.values() if client not in shares]
            self._send_cost_models([batch.model], others)
            batch = replace(batch, cost_model=self._scheduler.model_costs[batch.model].cost_model)
        for client, outcomes in shares.items():
            if client.closed:
                self._answer_detach(client)
            elif len(shares) == 1:
                self._send(client, pack(batch))
            else:
                self._send(client, pack(replace(batch, outcomes=tuple(outcomes))))

    def flush(self) -> None:
        """Wait until all clients have got their outcomes; not long, since one may not read."""
        end = time.monotonic() + _FLUSH_SECONDS
        while any(client.channel.has_unsent for client in self._open.values()):
            left = end - time.monotonic()
            if left <= 0:
                log.warning("API processes do not read: the outcomes of some jobs are lost")
                return
            self._receive_once(left)

    def close(self) -> None:
        """Close the channels of all clients."""
        for client in list(self._open.values()):
            self._drop(client)

    def _receive_once(self, timeout: float | None) -> None:
        """Wait for events, and handle one receive call of each channel that has some."""
        events = wait_for(self._poll, timeout)
        control = self._control.fileno()
        # First, since a client that it detaches may be among the others.
        if any(descriptor == control for descriptor, _ in events):
            self._handle_control(self._control.receive_some())
        for descriptor, event in events:
            client = self._open.get(descriptor)
            if client is not None:
                self._handle_event(client, event)

    def _handle_event(self, client: _Client, event: int) -> None:
        try:
            if event & select.POLLOUT:
                client.channel.flush()
                self._watch(client)
            if event & ~select.POLLOUT:
                self._handle_messages(client, client.channel.receive_some())
        except ChannelClosed:
            self._drop(client)
        except BadMessage as error:
            log.error("API process %d is dropped: %s", client.worker, error)
            self._drop(client)

    def _handle_messages(self, client: _Client, messages: Sequence[Any]) -> None:
        """Handle what an API process has sent. Raises `BadMessage`."""
        cancelled = []
        for message in messages:
            match message:
                case Job():
                    self._add(client, message)
                case Cancel(id=job_id):
                    if self._jobs.get(job_id) is client and self._scheduler.cancel(job_id):
                        cancelled.append(Outcome(job_id, Failure.CANCELLED))
                case _:
                    raise BadMessage(f"{type(message).__name__} was received, not a job")
        if cancelled:
            self.reply(BatchDone("", tuple(cancelled)))

    def _add(self, client: _Client, job: Job) -> None:
        """Give a job to the scheduler. Raises `BadMessage`."""
        if job.id in self._jobs:
            raise BadMessage(f"job {job.id} was received twice")
        try:
            self._scheduler.add(job)
        except Exception as error:  # whatever a field of a wrong type makes it raise
            raise BadMessage(f"job {job.id} cannot be scheduled: {error!r}") from error
        self._jobs[job.id] = client
        client.jobs += 1

    def _handle_control(self, messages: Iterable[Any]) -> None:
        """Handle what the parent has sent. Raises `BadMessage`."""
        for message in messages:
            match message:
                case WithDescriptor(message=Attach(worker=worker), connection=connection):
                    self._attach(_Client(worker, Channel(connection)))
                case Detach(worker=worker):
                    self._detach(worker)
                case Stop():
                    self.stopping = True
                case _:
                    raise BadMessage(f"the engine received {type(message).__name__}")

    def _attach(self, client: _Client) -> None:
        """Accept jobs of ``client``, and send it the latest cost models."""
        before = self._workers.get(client.worker)
        if before is not None:
            self._drop(before)
        self._workers[client.worker] = client
        self._open[client.channel.fileno()] = client
        self._poll.register(client.channel, select.POLLIN)
        self._send_cost_models(self._scheduler.model_costs, [client])

    def _detach(self, worker: int) -> None:
        """Drop an API process, and answer the parent as soon as no job of it is left."""
        client = self._workers.get(worker)
        if client is None:
            self._control.send(Detached(worker))
            return
        self._drop(client)
        client.is_detaching = True
        self._answer_detach(client)

    def _answer_detach(self, client: _Client) -> None:
        if not client.is_detaching or client.jobs:
            return
        client.is_detaching = False
        if self._workers.get(client.worker) is client:
            del self._workers[client.worker]
        self._control.send(Detached(client.worker))

    def _drop(self, client: _Client) -> None:
        """Close the channel of ``client`` and drop its queued jobs. Those in flight go on."""
        if client.closed:
            return
        client.closed = True
        self._poll.unregister(client.channel)
        del self._open[client.channel.fileno()]
        client.channel.close()
        own = [job_id for job_id, owner in self._jobs.items() if owner is client]
        for job_id in own:
            if self._scheduler.cancel(job_id):
                del self._jobs[job_id]
                client.jobs -= 1

    def _send_cost_models(self, models: Iterable[str], clients: Iterable[_Client]) -> None:
        """Send the latest cost models of ``models`` to those of ``clients`` that read."""
        reading = [client for client in clients if not client.channel.has_unsent]
        for model in models:
            cost_model = self._scheduler.model_costs[model].cost_model
            data = pack(BatchDone(model, (), cost_model=cost_model))
            for client in reading:
                self._send(client, data)

    def _send(self, client: _Client, data: bytes) -> None:
        if client.closed:
            return
        try:
            client.channel.post(data)
        except ChannelClosed:
            self._drop(client)
        else:
            if client.channel.has_unsent:
                self._watch(client)

    def _watch(self, client: _Client) -> None:
        """Wait for what ``client`` sends, and until it reads where something is unsent."""
        wanted = select.POLLIN
        if client.channel.has_unsent:
            wanted |= select.POLLOUT
        self._poll.modify(client.channel, wanted)
