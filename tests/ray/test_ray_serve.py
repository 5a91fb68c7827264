"""The application of deploy/ray_serve.yaml in a Ray of its own, with two CPU replicas."""

from __future__ import annotations

import asyncio
import copy
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from benchmarks.ray_serve import Cluster, application, cluster
from server.commands.offline import load_runner, parse_schedule, pick_model, run_one
from server.settings import ModelSettings
from tests.server.conftest import eventually, free_port
from tests.server.wire import EXAMPLES, assert_problem
from tome_client import AsyncClient, Classification, Retry

pytestmark = pytest.mark.ray

LEVELS = ("0", "16")
MARK = uuid4().hex
METRICS = 29_500
PERSISTENT = Retry(attempts=100, total=120)
Answers = dict[tuple[str, str], dict[int, float]]


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Cluster]:
    settings: dict[str, Any] = {
        "levels": "0,16",
        "max_batch": 8,
        "log_level": "warning",
        "metrics_port": METRICS,
        "mark": MARK,
    }
    with cluster(
        tmp_path_factory.mktemp("ray"), free_port(), application(2, 0.5, **settings)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def offline() -> Answers:
    """The scores of every class, computed in this process without a server."""
    settings = ModelSettings()
    runner = load_runner(settings, pick_model(settings, ""))
    answers: Answers = {}
    for name, encoded in EXAMPLES.items():
        for r in LEVELS:
            found, _ = run_one(
                encoded=encoded,
                runner=runner,
                schedule=parse_schedule(runner, r),
                top_k=5,
                output="classes",
            )
            answers[name, r] = dict(zip(found.classes, found.scores, strict=True))
    return answers


def is_right(found: Classification, expected: dict[int, float]) -> bool:
    best = found.predictions[0]
    return best.index == max(
        expected, key=lambda index: expected[index]
    ) and best.score == pytest.approx(expected[best.index], abs=0.02)


def engines() -> dict[int, int]:
    """Engine processes of this module's replicas, and the replicas that they belong to."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"server.engine" in (folder / "cmdline").read_bytes()
                and MARK in (folder / "environ").read_text()
            ):
                found[int(folder.name)] = int(
                    (folder / "stat").read_text().rpartition(")")[2].split()[1]
                )
        except OSError:  # it has ended, or is another user's
            continue
    return found


def replicas() -> set[int]:
    return set(engines().values())


@dataclass
class Asked:
    """What became of requests: of clients that ask again, and of one that does not."""

    right: int = 0
    wrong: list[object] = field(default_factory=list)
    refusals: list[httpx.Response] = field(default_factory=list)


@asynccontextmanager
async def load(app: Cluster, offline: Answers, clients: int = 8) -> AsyncIterator[Asked]:
    """Ask without a pause until the block ends; every answer is compared with the offline ones."""
    asked = Asked()
    stop = asyncio.Event()

    async def persist(client: AsyncClient) -> None:
        while not stop.is_set():
            for (name, r), expected in offline.items():
                found = await client.classify(EXAMPLES[name], r=r)
                if is_right(found, expected):
                    asked.right += 1
                else:
                    asked.wrong.append((name, r, found))

    async def ask_once(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            response = await client.post("/classify?r=16", content=EXAMPLES["sneaker"])
            if response.status_code != 200:
                asked.refusals.append(response)
                await asyncio.sleep(0.05)

    async with (
        AsyncClient(app.url, retry=PERSISTENT) as client,
        httpx.AsyncClient(base_url=app.url, timeout=60) as single,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(clients):
            tasks.create_task(persist(client))
            tasks.create_task(ask_once(single))
        try:
            await until(lambda: asked.right > 4 * clients)
            yield asked
            before = asked.right
            await until(lambda: asked.right > before + 4 * clients)
        finally:
            stop.set()


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, condition, 90)


def under_load(
    app: Cluster, offline: Answers, disturb: Callable[[Asked], Awaitable[None]]
) -> Asked:
    """What became of requests around ``disturb``: none of those that were asked again failed, or
    was wrong.
    """

    async def run() -> Asked:
        async with load(app, offline) as asked:
            await disturb(asked)
        return asked

    asked = asyncio.run(run())
    assert not asked.wrong
    for response in asked.refusals:
        assert_problem(response, 503, response.json()["type"].rpartition(":")[2])
        assert int(response.headers["retry-after"]) >= 1
    return asked


def test_answers_are_those_of_the_model(app, offline):
    async def disturb(asked: Asked) -> None:
        await asyncio.sleep(0)

    assert not under_load(app, offline, disturb).refusals


def test_metrics_of_each_replica_are_on_a_port_of_its_own(app):
    assert httpx.get(f"{app.url}/metrics").status_code == 404
    texts = [httpx.get(f"http://127.0.0.1:{METRICS + index}/metrics").text for index in range(2)]
    for text in texts:
        (line,) = [
            line for line in text.splitlines() if line.startswith('tome_engine_ready{engine="0"}')
        ]
        assert line.endswith(" 1.0")
    assert texts[0] != texts[1]


def test_a_replica_is_killed_under_load(app, offline):
    async def disturb(asked: Asked) -> None:
        for _ in range(5):
            victim, other = sorted(replicas())
            lost = [engine for engine, replica in engines().items() if replica == victim]
            os.kill(victim, signal.SIGKILL)

            def have_ended(lost: list[int] = lost) -> bool:
                return not set(lost) & set(engines())

            await until(have_ended)  # an engine does not outlive its replica
            await until(lambda: len(replicas()) == 2)
            assert other in replicas()
            if asked.refusals:  # else all that the lost one had were of clients that ask again
                break

    assert under_load(app, offline, disturb).refusals, "no request was in a replica that was lost"


def test_an_engine_is_lost_under_load(app, offline):
    victim = min(engines())

    async def disturb(asked: Asked) -> None:
        os.kill(victim, signal.SIGKILL)
        await until(lambda: victim not in engines() and len(replicas()) == 2)

    under_load(app, offline, disturb)


def test_a_new_setting_is_rolled_out_under_load(app, offline):
    before = replicas()
    config = copy.deepcopy(app.config)
    config["applications"][0]["runtime_env"]["env_vars"]["TOME_DEFAULT_R"] = "16"
    assert httpx.post(f"{app.url}/classify", content=EXAMPLES["sneaker"]).json()["r"] == "0"

    async def disturb(asked: Asked) -> None:
        await asyncio.to_thread(app.deploy, config)
        await until(lambda: len(replicas()) == 2 and not replicas() & before)

    under_load(app, offline, disturb)
    eventually(
        lambda: httpx.post(f"{app.url}/classify", content=EXAMPLES["sneaker"]).json()["r"] == "16",
        60,
    )
