"""Routing to a real engine process that serves two tiny models, and to two of unlike speed."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine_client.routing import Router
from server.errors import EngineStartError, Overloaded
from server.ipc.messages import BatchDone, OutputKind
from server.latency.cost import CostFeatures, CostModel
from tests.server.engine_client.engines import SIZE, classify, configuration, running, shared, until
from tome_core.schedule import Schedule

Shared = tuple[asyncio.Runner, Router, list[BatchDone]]
BLANK = np.zeros(SIZE, np.uint8)


@pytest.fixture(scope="module")
def two_models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny``, and ``dim``, the same network with another normalisation."""
    folder = tmp_path_factory.mktemp("two")
    table = (tiny_folder / "models.toml").read_text().replace('"tiny.', f'"{tiny_folder}/tiny.')
    table = table.replace('"labels.txt"', f'"{tiny_folder}/labels.txt"')
    dim = table.replace('name = "tiny"', 'name = "dim"').replace("0.5,", "0.1,")
    (folder / "models.toml").write_text(table + dim)
    return folder


@pytest.fixture(scope="module")
def serving(two_models: Path) -> Iterator[Shared]:
    batches: list[BatchDone] = []
    with shared(configuration(two_models), on_batch=batches.append) as (loop, router):
        yield loop, router, batches


def test_each_answer_belongs_to_its_image(serving: Shared, runner: Runner) -> None:
    loop, router, batches = serving
    images = np.random.default_rng(0).integers(0, 256, (8, *SIZE), np.uint8)
    kinds: list[OutputKind] = ["classes", "classes", "features", "source"]
    kinds += ["classes", "source", "features", "classes"]
    cases = list(zip(images, [0, 1, 2, 3, 4, 5, 0, 8], kinds, strict=True))
    expected = []
    for image, r, kind in cases:
        top_k = 3 if kind == "classes" else 0
        expected += runner.run([ImageInput(image, Schedule.constant(r), top_k, kind)])
    batches.clear()

    async def main() -> None:
        assert router.engines.models["tiny"].labels == ("cat", "dog", "fish")
        assert router.engines.models["tiny"].grid == (4, 4)
        results = await asyncio.gather(
            *(classify(router, image, r, output_kind=kind) for image, r, kind in cases)
        )
        assert (router.engines.slots.used, router.engines.queued) == (0, 0)
        for result, prediction in zip(results, expected, strict=True):
            outcome = result.outcome
            assert outcome.classes == prediction.classes
            assert outcome.scores == pytest.approx(prediction.scores, abs=1e-4)
            features = np.frombuffer(outcome.features, "<f4")
            expected_features = np.frombuffer(prediction.features, "<f4")
            np.testing.assert_allclose(features, expected_features, rtol=1e-4, atol=1e-4)
            assert outcome.source == prediction.source

    loop.run(main())
    assert sum(batch.images for batch in batches) == 8
    assert max(batch.images for batch in batches) <= 4


def test_each_model_answers_its_own_requests(serving: Shared) -> None:
    loop, router, _ = serving
    image = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)

    async def main() -> None:
        assert list(router.engines.models) == ["tiny", "dim"]
        results = await asyncio.gather(
            *(classify(router, image, 2, model=name) for name in ("tiny", "dim") * 3)
        )
        assert {result.batch.model for result in results} == {"tiny", "dim"}
        scores = [result.outcome.scores for result in results]
        assert scores[0] == pytest.approx(scores[2], abs=1e-5)
        assert scores[1] == pytest.approx(scores[3], abs=1e-5)
        assert scores[0] != pytest.approx(scores[1], abs=1e-3)

    loop.run(main())


def test_slots_bound_the_jobs_and_become_free_again(serving: Shared) -> None:
    loop, router, _ = serving

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(router.lease())
            with pytest.raises(Overloaded) as caught, router.lease():
                pass
            assert caught.value.retry_after
        assert router.engines.slots.used == 0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(classify(router, BLANK, 0), timeout=0)
        cancelled = [asyncio.create_task(classify(router, BLANK, 0)) for _ in range(8)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        await until(
            lambda: router.engines.slots.used == 0
        )  # the engine has dropped or run the jobs
        assert (await classify(router, BLANK, 0)).outcome.failure is None

    loop.run(main())


def test_a_job_whose_deadline_has_passed_is_not_run(serving: Shared) -> None:
    loop, router, batches = serving
    batches.clear()
    assert loop.run(classify(router, BLANK, 0, deadline=0.0)).outcome.failure == "expired"
    assert sum(batch.images for batch in batches) == 0


def test_a_mistake_in_the_settings_is_raised_at_the_first_start(tiny_folder: Path) -> None:
    restarts: list[str] = []

    async def main() -> None:
        with pytest.raises(EngineStartError, match="there is no cuda:7 here"):
            async with running(
                [configuration(tiny_folder, device="cuda:7")], on_restart=restarts.append
            ):
                pass

    asyncio.run(main())
    assert not restarts


def test_an_image_goes_to_the_engine_that_would_complete_it_first(tiny_folder: Path) -> None:
    """The second engine is four times as fast as the first one."""
    per_image = [0.04, 0.01]  # seconds

    async def main() -> None:
        async with running([configuration(tiny_folder, slots=10)] * 2) as router:
            processes = [engine.process for engine in router.engines.supervisors]
            work = router.estimate_work("tiny", [Schedule.constant(0)], time.monotonic() + 60)
            for process, seconds in zip(processes, per_image, strict=True):
                os.kill(process.pid, signal.SIGSTOP)
                per_token = seconds / work.image_cost.tokens
                process.cost_models = {"tiny": CostModel(CostFeatures(tokens=per_token), margin=0)}
            assert router.seconds_to_complete(work) == pytest.approx(0.01)
            # Not before one of the engines has run its half of them.
            assert router.seconds_to_complete(work, images=5) == pytest.approx(0.03)
            asking = asyncio.gather(*(classify(router, BLANK, 0) for _ in range(10)))
            await until(lambda: router.engines.queued == 10)
            assert [process.queued for process in processes] == [2, 8]
            last = replace(work, due=float("inf"))
            assert router.seconds_to_complete(last) == pytest.approx(0.09)
            for process in processes:
                os.kill(process.pid, signal.SIGCONT)
            await asking

    asyncio.run(main())


def test_images_that_are_not_submitted_yet_count_where_they_are_expected(tiny_folder: Path) -> None:
    async def main() -> None:
        async with running([configuration(tiny_folder)] * 2) as router:
            work = router.estimate_work("tiny", [Schedule.constant(0)], None)
            alone = router.seconds_to_complete(work)
            with router.lease(work), router.lease(work):
                assert router.seconds_to_complete(work) > alone
            assert router.seconds_to_complete(work) == alone

    asyncio.run(main())


def test_an_idle_engine_comes_before_one_whose_images_are_all_due_later(tiny_folder: Path) -> None:
    async def main() -> None:
        async with running([configuration(tiny_folder, slots=10)] * 2) as router:
            first, second = (engine.process for engine in router.engines.supervisors)
            second.cost_models = first.cost_models  # measured at start, and not alike
            for process in (first, second):
                os.kill(process.pid, signal.SIGSTOP)
            later = [asyncio.ensure_future(classify(router, BLANK, 0)) for _ in range(2)]
            await until(lambda: first.queued + second.queued == 2)
            assert (first.queued, second.queued) == (1, 1)
            soon = time.monotonic() + 0.5
            earlier = [
                asyncio.ensure_future(classify(router, BLANK, 0, deadline=soon)) for _ in range(2)
            ]
            await until(lambda: first.queued + second.queued == 4)
            assert (first.queued, second.queued) == (2, 2)
            for process in (first, second):
                os.kill(process.pid, signal.SIGCONT)
            await asyncio.gather(*later, *earlier)

    asyncio.run(main())
