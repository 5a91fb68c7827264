"""The generations of engines: a reload of the catalog starts the next one beside that which serves.

The engines of the next generation are whole processes that start as all engines do: they load the
models, check, warm up and calibrate them. When every API process can use them all, each lets its
further requests be for their models. Those of before get the jobs of the requests that came before,
and end with the last of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from server.catalog.entries import Catalog
from server.catalog.state import CatalogRead
from server.errors import ConfigError, EngineStartError
from server.ipc.control import ReloadEnded, Serving
from server.ipc.messages import ModelInfo
from server.ipc.reload import ReloadReport, ReloadResult, ReloadStatus
from server.supervision.engine_group import EngineGroup, EngineNews, Subscriber
from server.supervision.shared import SharedMemory

log = logging.getLogger("tome.server")

_STOPPING = "the server stops"


class EngineGenerations:
    """The engines that serve, those that are to replace them, and those that they have replaced.

    It is made before the event loop runs: the models load meanwhile.

    Args:
        read: reads the catalog; raises `ConfigError`.
        create: starts the engines for a catalog: of that generation, and of those devices, by their
            indices. The second half of the indices of engines is that of every second generation.
        first: the catalog of the first generation.
        shared: the memory that all processes share.
        on_reload: called with the result of each reload.
    """

    def __init__(
        self,
        read: Callable[[], Catalog],
        create: Callable[[Catalog, int, Sequence[int]], EngineGroup],
        first: Catalog,
        shared: SharedMemory,
        on_reload: Callable[[ReloadResult], None],
    ) -> None:
        self._read = read
        self._create = create
        self._on_reload = on_reload
        self._shared = shared
        self._devices = shared.size.engines
        self._known = CatalogRead.of(first)
        self._number = 0
        self._current = create(first, 0, range(self._devices))
        self._next: EngineGroup | None = None
        self._replaced: EngineGroup | None = None
        self._subscribers: dict[int, Subscriber] = {}
        self._holders: set[int] = set()  # API processes with requests for the replaced engines
        self._released = asyncio.Event()
        self._supervisions: dict[int, asyncio.Task[None]] = {}  # by number of the generation
        self._failed: asyncio.Future[None] | None = None
        self._wanted: asyncio.Future[ReloadReport] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._status = ReloadStatus()
        self._stopping = False

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The served models, by name, the default first; they stay while engines restart."""
        return self._current.models

    @property
    def given_up(self) -> bool:
        """Whether all engines are given up, so that none will ever accept jobs again."""
        return self._current.given_up

    async def run(self) -> None:
        """Keep the engines alive until `stop`. Raises what `EngineGroup.run` of those raises."""
        self._failed = asyncio.get_running_loop().create_future()
        self._supervise(self._current)
        try:
            await self._failed
        finally:
            running = list(self._supervisions.values())
            if self._reloading is not None:
                running.append(self._reloading)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def wait_ready(self) -> None:
        """Return when all API processes could use an engine for the first time."""
        await self._current.wait_ready()

    def subscribe(self, worker: int, subscriber: Subscriber) -> None:
        """Tell an API process about the engines, and attach it to those that are ready, for good.

        Args:
            worker: index of the API process, which must not be subscribed.
        """
        self._subscribers[worker] = subscriber
        subscriber.tell(self._serving())
        subscriber.tell(self._status)
        self._current.subscribe(worker, subscriber)
        if self._next is not None:
            self._next.subscribe(worker, subscriber)

    async def unsubscribe(self, worker: int) -> None:
        """Forget an API process that has ended; return when no engine reads a slot of it."""
        self._subscribers.pop(worker, None)
        await asyncio.gather(*(group.unsubscribe(worker) for group in self._groups()))
        self._holders.discard(worker)
        self._note_release()

    def confirm(self, engine: int, worker: int) -> None:
        """Note that an API process can use ``engine``, or has ended."""
        for group in self._groups_of(engine):
            group.confirm(engine, worker)

    def refuse(self, engine: int, reason: str) -> None:
        """Note that an API process cannot serve the models of ``engine``."""
        for group in self._groups_of(engine):
            group.refuse(engine, reason)

    def end_unusable(self, engine: int, pid: int) -> None:
        """Kill the process ``pid`` of ``engine`` if it is the current one; another follows."""
        for group in self._groups_of(engine):
            group.end_unusable(engine, pid)

    def release(self, generation: int, worker: int) -> None:
        """Note that an API process has no request for the models of a generation any more."""
        if self._replaced is not None and self._replaced.generation == generation:
            self._holders.discard(worker)
            self._note_release()

    def reload(self) -> asyncio.Future[ReloadReport]:
        """Read the catalog again, and serve what it says; return the report to come.

        It is that of a reload which begins after this call: while one is under way, all that want
        another share the next.
        """
        loop = asyncio.get_running_loop()
        if self._stopping:
            stopped = loop.create_future()
            stopped.set_result(self._failure(_STOPPING, 0.0))
            return stopped
        if self._wanted is None:
            self._wanted = loop.create_future()
        if self._reloading is None or self._reloading.done():
            self._reloading = loop.create_task(self._reload_while_wanted())
        return self._wanted

    async def stop(self) -> None:
        """Let all engines complete their jobs, and wait until they have ended."""
        self.stop_reloading()
        await asyncio.gather(*(group.stop() for group in self._groups()))

    def stop_reloading(self) -> None:
        """Begin no reload any more; one that is under way fails, and its engines end."""
        self._stopping = True
        wanted, self._wanted = self._wanted, None
        if wanted is not None and not wanted.done():
            wanted.set_result(self._failure(_STOPPING, 0.0))
        if self._next is not None:
            self._next.kill()

    def kill(self, seconds: float = 0.0) -> None:
        """Kill all engine processes at once, and block for ``seconds`` at most until they end."""
        self._stopping = True
        end = time.monotonic() + seconds
        groups = list(self._groups())
        for group in groups:
            group.kill()
        for group in groups:
            group.kill(max(0.0, end - time.monotonic()))

    async def _reload_while_wanted(self) -> None:
        """Reload as often as it was requested, one after the other."""
        await self.wait_ready()  # a request during the start comes later
        while self._wanted is not None and not self._stopping:
            wanted, self._wanted = self._wanted, None
            self._publish(ReloadStatus(running=True, last=self._status.last))
            started = time.monotonic()
            report = self._failure(_STOPPING, 0.0)
            try:
                report = await self._reload(started)
            except Exception as error:
                log.exception("a reload failed")
                report = self._failure(f"{type(error).__name__}; the log has the details", started)
            finally:
                if not wanted.done():
                    wanted.set_result(report)
            self._log(report)
            self._on_reload(report.result)
            self._publish(ReloadStatus(running=False, last=report))
            try:
                await self._end_replaced()
            except EngineStartError as error:
                log.error("reload: the engines of before have not ended: %s", error)

    async def _reload(self, started: float) -> ReloadReport:
        """Read the catalog, and serve what it says, if that is possible."""
        try:
            catalog = await asyncio.to_thread(lambda: CatalogRead.of(self._read()))
        except ConfigError as error:
            return self._failure(str(error), started)
        if not catalog.has_same_models(self._known):
            failure = await self._replace(catalog)
            if failure is not None:
                return self._failure(failure, started)
            return self._report(ReloadResult.LOADED, started)
        before = self._known
        self._known = catalog
        # The order counts as well: it is that of /models.
        if list(catalog.catalog.aliases.items()) == list(before.catalog.aliases.items()):
            return self._report(ReloadResult.UNCHANGED, started)
        self._tell_all(self._serving())
        return self._report(ReloadResult.ALIASES, started)

    async def _replace(self, read: CatalogRead) -> str | None:
        """Let engines with the models of a catalog serve; return why not, if they cannot."""
        if self._replaced is not None:
            return "engines that an earlier reload has replaced cannot be ended; restart the server"
        devices = [
            engine % self._devices
            for engine, supervisor in zip(
                self._current.engines, self._current.supervisors, strict=True
            )
            if not supervisor.given_up
        ]
        self._number += 1
        names = ", ".join(spec.name for spec in read.catalog.specs)
        rows = (self._shared.board.engines[engine] for engine in self._current.engines)
        serving = sum(row.heartbeat().resident_bytes for row in rows)
        text = "reload: loading %s beside the models that serve, whose processes take %.0f MB now"
        log.info(text, names, serving / 1e6)
        try:
            following = self._create(read.catalog, self._number, self._rows(devices))
        except OSError as error:
            return f"no process can be started: {error.strerror}"
        self._next = following
        for worker, subscriber in self._subscribers.items():
            following.subscribe(worker, subscriber)
        failure = await self._wait_until_proven(following)
        self._next = None
        if failure is not None:
            await self._discard(following)
            return failure
        following.must_all_start = False
        self._known = read
        self._replaced = self._current
        self._holders = set(self._subscribers)
        self._current = following
        self._tell_all(self._serving())
        return None

    def _rows(self, devices: Sequence[int]) -> list[int]:
        """Return the indices of the engines for ``devices`` that the current ones do not have."""
        is_second = self._current.engines[0] >= self._devices
        return [device + (0 if is_second else self._devices) for device in devices]

    async def _wait_until_proven(self, group: EngineGroup) -> str | None:
        """Wait until all API processes can use all engines of ``group``; return why not."""
        supervision = self._supervise(group)
        proven = asyncio.create_task(group.wait_all_ready())
        try:
            await asyncio.wait((supervision, proven), return_when=asyncio.FIRST_COMPLETED)
        finally:
            proven.cancel()
            await asyncio.gather(proven, return_exceptions=True)
        if self._stopping:
            return _STOPPING
        ended = supervision if supervision.done() else proven
        error = None if ended.cancelled() else ended.exception()
        if error is None:
            return _STOPPING if supervision.done() else None
        if not isinstance(error, EngineStartError):
            log.error("reload: the supervision failed", exc_info=error)
        return str(error)

    def _supervise(self, group: EngineGroup) -> asyncio.Task[None]:
        """Keep the engines of ``group`` alive; what they end with counts if they serve."""
        task = asyncio.create_task(group.run())
        self._supervisions[group.generation] = task

        def on_done(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if group is not self._current or self._failed is None or self._failed.done():
                return
            if error is None:
                self._failed.set_result(None)
            else:
                self._failed.set_exception(error)

        task.add_done_callback(on_done)
        return task

    async def _end_replaced(self) -> None:
        """Wait until no request needs the replaced engines, end them, and free their memory."""
        replaced = self._replaced
        if replaced is None:
            return
        self._note_release()
        await self._released.wait()
        self._released.clear()
        await replaced.stop()
        await self._discard(replaced)
        self._replaced = None
        if replaced.region is not None:
            self._shared.regions.free(replaced.region)
        log.info("reload: the engines of before have ended")

    async def _discard(self, group: EngineGroup) -> None:
        """End the processes of ``group``, and wait until they have ended."""
        group.kill()
        supervision = self._supervisions.pop(group.generation)
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
        await group.close()

    def _note_release(self) -> None:
        if self._replaced is not None and not self._holders:
            self._released.set()

    def _serving(self) -> Serving:
        catalog = self._known.catalog
        return Serving(self._current.generation, self._current.engines, catalog.aliases)

    def _groups(self) -> Iterator[EngineGroup]:
        """All groups that have engines now."""
        for group in (self._current, self._next, self._replaced):
            if group is not None:
                yield group

    def _groups_of(self, engine: int) -> Iterator[EngineGroup]:
        return (group for group in self._groups() if engine in group.engines)

    def _tell_all(self, news: EngineNews) -> None:
        for subscriber in self._subscribers.values():
            subscriber.tell(news)

    def _publish(self, status: ReloadStatus) -> None:
        self._status = status
        self._tell_all(status)

    def _failure(self, reason: str, started: float) -> ReloadReport:
        return self._report(ReloadResult.FAILED, started, reason)

    def _report(self, result: ReloadResult, started: float, reason: str = "") -> ReloadReport:
        seconds = time.monotonic() - started if started else 0.0
        aliases = dict(self._known.catalog.aliases)
        return ReloadReport(result, reason, tuple(self.models), aliases, seconds)

    def _log(self, report: ReloadReport) -> None:
        extra = {"seconds": round(report.seconds, 3)}
        if report.result is ReloadResult.FAILED:
            log.error(
                "reload failed: %s; the models of before serve on", report.reason, extra=extra
            )
        else:
            log.info(
                "reload: %s after %.1f s; serving %s",
                report.result,
                report.seconds,
                ", ".join(report.models),
                extra=extra,
            )


def answer_reload(engines: EngineGenerations, ticket: int, subscriber: Subscriber) -> None:
    """Reload the catalog, and send the report to the API process that wants it."""

    def answer(report: asyncio.Future[ReloadReport]) -> None:
        if not report.cancelled():
            subscriber.tell(ReloadEnded(ticket, report.result()))

    engines.reload().add_done_callback(answer)
