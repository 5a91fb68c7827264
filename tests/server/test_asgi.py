"""The server as an ASGI application: its lifespan starts and stops the engines."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httpx
import pytest

from server.asgi import create_server
from server.errors import ConfigError, EngineStartError
from server.settings import Settings
from tests.server.conftest import children, eventually, runs
from tests.server.engine.tiny import write_tiny
from tests.server.wire import SNEAKER, assert_problem

FAST_START: dict[str, Any] = {
    "levels": (0,),
    "max_batch": 1,
    "threads": 1,
    "device": "cpu",
    "log_level": "warning",
}


def engines() -> list[int]:
    return [number for number in children(os.getpid()) if runs(number, "server.engine")]


def test_it_answers_within_its_lifespan_and_drains_at_its_end():
    app = create_server(Settings(**FAST_START))
    eventually(lambda: len(engines()) == 1)
    body_began = asyncio.Event()
    body_may_end = asyncio.Event()

    async def slow_body():
        yield SNEAKER[:100]
        body_began.set()
        await body_may_end.wait()
        yield SNEAKER[100:]

    async def run():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://x"
        ) as client:
            assert_problem(await client.get("/readyz"), 503, "overloaded")
            async with app.router.lifespan_context(app):
                assert (await client.get("/readyz")).status_code == 200
                answer = await client.post("/classify?r=16", content=SNEAKER)
                assert answer.json()["predictions"][0]["label"] == "Sneaker"
                accepted = asyncio.create_task(client.post("/classify?r=16", content=slow_body()))
                await body_began.wait()
                asyncio.get_running_loop().call_later(0.2, body_may_end.set)
            assert (await accepted).status_code == 200
            refusal = await client.post("/classify", content=SNEAKER)
            assert_problem(refusal, 503, "overloaded")
            assert refusal.json()["reason"] == "draining"

    asyncio.run(run())
    assert not engines()


def test_an_engine_that_cannot_start_fails_the_lifespan(tmp_path):
    config = tmp_path / "models.toml"
    config.write_text(
        '[[models]]\nname = "x"\ntimm = "vit_tiny_patch16_224"\ncheckpoint = "bad.safetensors"\n'
    )
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    app = create_server(Settings(**FAST_START, config=config))

    async def run():
        async with app.router.lifespan_context(app):
            pytest.fail("the engine cannot be ready")

    with pytest.raises(EngineStartError, match=r"bad\.safetensors"):
        asyncio.run(run())
    assert not engines()


def test_a_mistake_in_the_catalog_is_reported_before_an_engine_starts(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        create_server(Settings(config=tmp_path / "none.toml"))


@pytest.mark.slow
def test_models_change_within_its_lifespan(tmp_path, monkeypatch):
    monkeypatch.setenv("TOME_ADMIN_KEY", "of-the-operator")
    config = write_tiny(tmp_path)
    text = config.read_text()
    app = create_server(Settings(**FAST_START, config=config, dtype="float32"))
    key = {"Authorization": "Bearer of-the-operator"}

    async def run():
        async with (
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client,
            app.router.lifespan_context(app),
        ):
            (first,) = engines()
            assert (await client.post("/classify?model=more", content=SNEAKER)).status_code == 404
            config.write_text(text + text.replace('"tiny"', '"more"', 1))
            reloaded = await client.post("/admin/reload", headers=key)
            assert reloaded.json()["models"] == ["tiny", "more"]
            answer = await client.post("/classify?model=more", content=SNEAKER)
            assert answer.json()["model"] == "more"

            config.write_text("broken")
            failed = await client.post("/admin/reload", headers=key)
            assert_problem(failed, 422, "reload-failed")
            answer = await client.post("/classify?model=more", content=SNEAKER)
            assert answer.json()["model"] == "more"
            await asyncio.to_thread(eventually, lambda: len(engines()) == 1)
            assert engines() != [first]

    asyncio.run(run())
    assert not engines()
