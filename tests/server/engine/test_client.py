"""The client with a real engine process on a tiny model."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from server.engine.client import EngineClient, Result
from server.engine.config import EngineConfig
from server.engine.runner import Runner
from server.errors import EngineLost, EngineStartError, Overloaded
from server.messages import BatchDone, Want
from tome_core.schedule import Schedule

SIZE = (3, 32, 32)


def configuration(folder: Path, slots: int = 8, **changes: object) -> EngineConfig:
    values: dict[str, object] = {
        "config": folder / "models.toml",
        "models": (),
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "levels": (0, 4),
        "max_batch": 4,
        "slots": slots,
        "target_seconds": 1.0,
        "log_level": "warning",
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(config: EngineConfig, batches: list[BatchDone]) -> AsyncIterator[EngineClient]:
    client = EngineClient(config, batches.append)
    client.spawn()
    try:
        await client.start(60)
        serving = asyncio.create_task(client.serve())
        yield client
        await client.stop(10)
        await serving
    finally:
        client.kill()


async def classify(
    client: EngineClient, pixels: np.ndarray, r: int, deadline: float | None = None, want: Want = "classes"
) -> Result:
    with client.lease() as lease:
        np.copyto(lease.pixels(SIZE), pixels)
        return await lease.run("tiny", Schedule.constant(r), 3 if want == "classes" else 0, deadline, want)


def test_each_answer_belongs_to_its_image(tiny_folder: Path, runner: Runner) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, *SIZE), np.uint8)
    schedules = [0, 1, 2, 3, 4, 5, 0, 8]
    wants: list[Want] = ["classes", "classes", "features", "source", "classes", "source", "features", "classes"]
    asked = list(zip(images, schedules, wants, strict=True))
    expected = [
        runner.run(image[None], [Schedule.constant(r)], [3 if want == "classes" else 0], [want])[0]
        for image, r, want in asked
    ]
    batches: list[BatchDone] = []

    async def main() -> None:
        async with running(configuration(tiny_folder), batches) as client:
            assert client.models["tiny"].labels == ("cat", "dog", "fish")
            assert client.models["tiny"].grid == (4, 4)
            results = await asyncio.gather(*(classify(client, image, r, want=want) for image, r, want in asked))
            assert (client.held, client.queued) == (0, 0)
        for result, want in zip(results, expected, strict=True):
            outcome = result.outcome
            assert outcome.classes == want.classes
            assert outcome.scores == pytest.approx(want.scores, abs=1e-4)
            features = np.frombuffer(outcome.features, "<f4")
            np.testing.assert_allclose(features, np.frombuffer(want.features, "<f4"), rtol=1e-4, atol=1e-4)
            assert outcome.source == want.source
        assert sum(batch.images for batch in batches) == 8
        assert max(batch.images for batch in batches) <= 4

    asyncio.run(main())


def test_slots_are_the_bound_and_come_back(tiny_folder: Path) -> None:
    async def main() -> None:
        async with running(configuration(tiny_folder, slots=2), []) as client:
            with client.lease(), client.lease(), pytest.raises(Overloaded), client.lease():
                pass
            assert client.held == 0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(classify(client, np.zeros(SIZE, np.uint8), 0), timeout=0)
            cancelled = [asyncio.create_task(classify(client, np.zeros(SIZE, np.uint8), 0)) for _ in range(2)]
            await asyncio.sleep(0)
            for task in cancelled:
                task.cancel()
            await asyncio.gather(*cancelled, return_exceptions=True)
            while client.held:  # the engine says when it has dropped or run them
                await asyncio.sleep(0.01)
            assert (await classify(client, np.zeros(SIZE, np.uint8), 0)).outcome.failure == ""

    asyncio.run(main())


def test_a_deadline_that_has_passed_is_not_run(tiny_folder: Path) -> None:
    batches: list[BatchDone] = []

    async def main() -> None:
        async with running(configuration(tiny_folder), batches) as client:
            result = await classify(client, np.zeros(SIZE, np.uint8), 0, deadline=0.0)
            assert result.outcome.failure == "expired"
        assert sum(batch.images for batch in batches) == 0

    asyncio.run(main())


def test_a_lost_engine_fails_who_waits_and_refuses_who_comes(tiny_folder: Path) -> None:
    async def main() -> None:
        client = EngineClient(configuration(tiny_folder), lambda batch: None)
        client.spawn()
        await client.start(60)
        assert client._process is not None
        os.kill(client._process.pid, signal.SIGSTOP)  # so that the job is still waiting when the process dies
        serving = asyncio.create_task(client.serve())
        waiting = asyncio.create_task(classify(client, np.zeros(SIZE, np.uint8), 0))
        await asyncio.sleep(0.1)
        client.kill()
        with pytest.raises(EngineLost):
            await waiting
        await serving
        assert (client.ready, client.held) == (False, 0)
        with pytest.raises(Overloaded), client.lease():
            pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"device": "cuda:7"}, "there is no cuda:7 here"), ({"models": ("vit_no_such",)}, "timm cannot create")],
)
def test_an_engine_that_cannot_start_says_why(tiny_folder: Path, change: dict[str, object], sentence: str) -> None:
    async def main() -> None:
        client = EngineClient(configuration(tiny_folder, **change), lambda batch: None)
        client.spawn()
        try:
            with pytest.raises(EngineStartError, match=sentence):
                await client.start(60)
            assert await client.stop(10) == 1
        finally:
            client.kill()

    asyncio.run(main())


def test_several_models_each_answer_for_themselves(tiny_folder: Path, tmp_path: Path) -> None:
    table = (tiny_folder / "models.toml").read_text().replace('"tiny.', f'"{tiny_folder}/tiny.')
    table = table.replace('"labels.txt"', f'"{tiny_folder}/labels.txt"')
    (tmp_path / "models.toml").write_text(
        table + table.replace('name = "tiny"', 'name = "dim"').replace("0.5,", "0.1,")
    )
    image = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)

    async def ask(client: EngineClient, model: str) -> Result:
        with client.lease() as lease:
            np.copyto(lease.pixels(SIZE), image)
            return await lease.run(model, Schedule.constant(2), 3)

    async def main() -> None:
        async with running(configuration(tmp_path), []) as client:
            assert list(client.models) == ["tiny", "dim"]
            results = await asyncio.gather(*(ask(client, name) for name in ("tiny", "dim") * 3))
        assert {result.batch.model for result in results} == {"tiny", "dim"}
        scores = [result.outcome.scores for result in results]
        assert scores[0] == pytest.approx(scores[2], abs=1e-5)
        assert scores[1] == pytest.approx(scores[3], abs=1e-5)
        assert scores[0] != pytest.approx(scores[1], abs=1e-3)

    asyncio.run(main())
