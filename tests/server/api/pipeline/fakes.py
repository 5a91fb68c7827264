"""A router without engines, for tests of the API process alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from starlette.requests import Request

from server.errors import EngineLost, Overloaded, Refusal
from server.ipc.board import Board, BoardSize
from server.ipc.messages import ModelInfo, SecondPass
from server.latency.second_passes import SecondPasses
from server.media.transforms import AudioTransform, ImageTransform, VideoTransform

MODEL = ModelInfo(
    name="tiny",
    architecture="vit",
    transform=ImageTransform((3, 8, 8), "bicubic", 1.0, "center"),
    labels=("cat", "dog", "fish"),
    tokens=5,
    prefix=1,
    depth=2,
    device="cpu",
    dtype="float32",
    levels=(),
    grid=(2, 2),
)


AUDIO_MODEL = replace(
    MODEL,
    name="ear",
    transform=AudioTransform(
        16, mean=-4.0, std=2.0, time_last=True, subtract_mean=False, mel_bins=8
    ),
    tokens=10,
    prefix=2,
    grid=(2, 4),
)


VIDEO_MODEL = replace(
    MODEL,
    name="clip",
    transform=VideoTransform(frames=4, tubelet=2, height=8, width=8, resize=8, clips=2),
    tokens=8,
    prefix=0,
    grid=(4, 2),
)


@dataclass(frozen=True)
class FakeRun:
    """What was submitted: in which slot, the first value of its input, and what was asked for."""

    slot: int
    value: float
    top_k: int
    keep_slot: bool
    choices: tuple[Any, ...] = ()
    second: SecondPass | None = None
    is_second: bool = False


@dataclass
class FakeLease:
    """A slot whose job gets the next prepared result, in the order of submission.

    Without any its result never comes. None for a result: no engine takes the job.
    """

    results: list[Any]
    runs: list[FakeRun]
    futures: list[asyncio.Future[Any]]
    slot: int
    pixels: np.ndarray | None = None
    is_released: bool = False

    def release(self) -> None:
        self.is_released = True

    def write(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def submit(self, *arguments: Any, **options: Any) -> asyncio.Future[Any]:
        assert self.pixels is not None
        if self.results and self.results[0] is None:
            raise EngineLost("no engine is ready", retry_after=7)
        top_k = arguments[2]
        keep_slot = options.get("keep_slot", False)
        run = FakeRun(
            self.slot,
            float(self.pixels.flat[0]),
            top_k,
            keep_slot,
            tuple(arguments[1]),
            options.get("second"),
            options.get("is_second", False),
        )
        self.runs.append(run)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if self.results:
            loop.call_soon(answer_with, future, self.results.pop(0))
        self.futures.append(future)
        return future


def answer_with(future: asyncio.Future[Any], result: Any) -> None:
    """Give ``future`` its result, or its error, unless it is cancelled."""
    if future.cancelled():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def new_board(workers: int = 1) -> Board:
    """A board of so many API processes; its memory is freed with it."""
    board = Board.create(BoardSize(engines=1, workers=workers, slots=1))
    os.close(board.descriptor)
    return board


@dataclass
class FakeEngines:
    """The models that the engines have reported, and the board of one API process or several."""

    models: dict[str, ModelInfo] = field(default_factory=dict)
    board: Board = field(default_factory=new_board)
    worker: int = 0


@dataclass
class FakeRouter:
    """Stands in for `server.engine_client.routing.Router`."""

    slots: int = 4
    max_batch: int = 8
    ready: bool = True
    needed_seconds: float = 0.0
    results: list[Any] = field(default_factory=list)
    engines: FakeEngines = field(default_factory=FakeEngines)
    runs: list[FakeRun] = field(default_factory=list)
    futures: list[asyncio.Future[Any]] = field(default_factory=list)  # of the runs
    second_passes: SecondPasses = field(default_factory=SecondPasses)
    slot_count: int = field(init=False)

    def __post_init__(self) -> None:
        self.slot_count = self.slots

    def retry_after(self) -> int:
        return 7

    def check_ready(self) -> None:
        if not self.ready:
            raise Overloaded("the models are not loaded", retry_after=7, reason=Refusal.NOT_READY)

    def check_room(self) -> None:
        if self.slots == 0:
            raise Overloaded("no slot is free", retry_after=7, reason=Refusal.QUEUE_FULL)

    def estimate_work(
        self,
        model: str,
        choices: Sequence[Any],
        deadline: float | None,
        second: SecondPass | None = None,
        generation: int | None = None,
    ) -> str:
        return f"work of {model}"

    @property
    def free_slots(self) -> int:
        return self.slots

    def seconds_to_complete(self, estimate: Any, images: int = 1) -> float:
        return self.needed_seconds * images

    @contextlib.contextmanager
    def lease(self, estimate: Any = None, generation: int | None = None) -> Iterator[FakeLease]:
        self.check_room()
        self.slots -= 1
        try:
            yield FakeLease(self.results, self.runs, self.futures, self.slots)
        finally:
            self.slots += 1


def request_of(
    chunks: Sequence[bytes],
    headers: dict[str, str] | None = None,
    complete: bool = True,
) -> Request:
    """A request whose body arrives in ``chunks``; unless it is ``complete``, the rest never comes.

    Its client stays connected.
    """
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if complete:
        messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        return await asyncio.Future()

    encoded = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "headers": encoded}, receive)
