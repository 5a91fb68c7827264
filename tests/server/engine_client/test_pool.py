"""The pool with a real engine process that serves two tiny models."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.engine.execution.runner import Runner
from server.engine_client.pool import EnginePool, work_of
from server.engine_client.served_models import identities, merge
from server.errors import EngineStartError, Overloaded
from server.imaging.transform import Transform
from server.ipc.messages import BatchDone, ModelInfo, OutputKind
from tests.server.engine_client.pools import SIZE, classify, configuration, running, shared
from tome_core.schedule import Schedule

Shared = tuple[asyncio.Runner, EnginePool, list[BatchDone]]
BLANK = np.zeros(SIZE, np.uint8)


@pytest.fixture(scope="module")
def two_models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny``, and ``dim``, which takes the same images for brighter."""
    folder = tmp_path_factory.mktemp("two")
    table = (tiny_folder / "models.toml").read_text().replace('"tiny.', f'"{tiny_folder}/tiny.')
    table = table.replace('"labels.txt"', f'"{tiny_folder}/labels.txt"')
    dim = table.replace('name = "tiny"', 'name = "dim"').replace("0.5,", "0.1,")
    (folder / "models.toml").write_text(table + dim)
    return folder


@pytest.fixture(scope="module")
def pool(two_models: Path) -> Iterator[Shared]:
    batches: list[BatchDone] = []
    with shared(configuration(two_models), on_batch=batches.append) as (loop, pool):
        yield loop, pool, batches


def test_each_answer_belongs_to_its_image(pool: Shared, runner: Runner) -> None:
    loop, engines, batches = pool
    images = np.random.default_rng(0).integers(0, 256, (8, *SIZE), np.uint8)
    wants: list[OutputKind] = [
        "classes",
        "classes",
        "features",
        "source",
        "classes",
        "source",
        "features",
        "classes",
    ]
    cases = list(zip(images, [0, 1, 2, 3, 4, 5, 0, 8], wants, strict=True))
    expected = [
        runner.run(image[None], [Schedule.constant(r)], [3 if want == "classes" else 0], [want])[0]
        for image, r, want in cases
    ]
    batches.clear()

    async def main() -> None:
        assert engines.models["tiny"].labels == ("cat", "dog", "fish")
        assert engines.models["tiny"].grid == (4, 4)
        results = await asyncio.gather(
            *(classify(engines, image, r, want=want) for image, r, want in cases)
        )
        assert (engines.held, engines.queued) == (0, 0)
        for result, want in zip(results, expected, strict=True):
            outcome = result.outcome
            assert outcome.classes == want.classes
            assert outcome.scores == pytest.approx(want.scores, abs=1e-4)
            features = np.frombuffer(outcome.features, "<f4")
            np.testing.assert_allclose(
                features, np.frombuffer(want.features, "<f4"), rtol=1e-4, atol=1e-4
            )
            assert outcome.source == want.source

    loop.run(main())
    assert sum(batch.images for batch in batches) == 8
    assert max(batch.images for batch in batches) <= 4


def test_several_models_each_answer_for_themselves(pool: Shared) -> None:
    loop, engines, _ = pool
    image = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)

    async def main() -> None:
        assert list(engines.models) == ["tiny", "dim"]
        results = await asyncio.gather(
            *(classify(engines, image, 2, model=name) for name in ("tiny", "dim") * 3)
        )
        assert {result.batch.model for result in results} == {"tiny", "dim"}
        scores = [result.outcome.scores for result in results]
        assert scores[0] == pytest.approx(scores[2], abs=1e-5)
        assert scores[1] == pytest.approx(scores[3], abs=1e-5)
        assert scores[0] != pytest.approx(scores[1], abs=1e-3)

    loop.run(main())


def test_slots_are_the_bound_and_come_back(pool: Shared) -> None:
    loop, engines, _ = pool

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(engines.lease())
            with pytest.raises(Overloaded) as caught, engines.lease():
                pass
            assert caught.value.retry_after
        assert engines.held == 0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(classify(engines, BLANK, 0), timeout=0)
        cancelled = [asyncio.create_task(classify(engines, BLANK, 0)) for _ in range(8)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        while engines.held:  # the engine says when it has dropped or run them
            await asyncio.sleep(0.01)
        assert (await classify(engines, BLANK, 0)).outcome.failure == ""

    loop.run(main())


def test_a_deadline_that_has_passed_is_not_run(pool: Shared) -> None:
    loop, engines, batches = pool
    batches.clear()
    assert loop.run(classify(engines, BLANK, 0, deadline=0.0)).outcome.failure == "expired"
    assert sum(batch.images for batch in batches) == 0


def test_a_mistake_ends_the_first_start_with_its_reason(tiny_folder: Path) -> None:
    restarts: list[str] = []

    async def main() -> None:
        with pytest.raises(EngineStartError, match="there is no cuda:7 here"):
            async with running(
                [configuration(tiny_folder, device="cuda:7")], on_restart=restarts.append
            ):
                pass

    asyncio.run(main())
    assert not restarts


def info(name: str, device: str, speed: str = "float32") -> ModelInfo:
    transform = Transform(SIZE, "bilinear", 1.0, "center")
    return ModelInfo(name, "vit", transform, ("a", "b"), 17, 1, 2, device, speed, (), (4, 4))


def test_engines_are_described_as_one() -> None:
    merged = merge(
        [(info("m", "cuda:0"), info("n", "cuda:0")), (info("m", "cuda:1"), info("n", "cuda:1"))]
    )
    assert [(model.name, model.device) for model in merged] == [
        ("m", "cuda:0,cuda:1"),
        ("n", "cuda:0,cuda:1"),
    ]


def test_only_the_device_may_differ_between_engines() -> None:
    assert identities((info("m", "cuda:0", "bfloat16"),)) == identities((info("m", "cpu"),))
    assert identities((info("m", "cpu"),)) != identities((info("n", "cpu"),))


def test_merging_makes_less_work() -> None:
    model = info("m", "cpu")
    assert work_of(model, Schedule.constant(0)) == 2 * 17
    assert work_of(model, Schedule.constant(4)) == 17 + 13
