"""Jobs of a real engine process that serves two tiny models."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine_client.routing import Router
from server.errors import EngineStartError, Overloaded
from server.ipc.messages import BatchDone, OutputKind
from tests.server.supervision.engines import SIZE, classify, configuration, running, shared, until
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
