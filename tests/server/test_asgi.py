"""The server as an ASGI application: its lifespan is that of its engines."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from server.asgi import create_server
from server.errors import ConfigError, EngineStartError
from server.settings import Settings
from tests.server.wire import SNEAKER, assert_problem

QUICK = {"levels": (0,), "max_batch": 1, "threads": 1, "device": "cpu", "log_level": "warning"}


def test_it_answers_within_its_lifespan_and_lets_what_it_accepted_end():
    app = create_server(Settings(**QUICK))
    parts = app.state.parts
    arrived = asyncio.Event()
    held = asyncio.Event()

    async def slow():
        yield SNEAKER[:100]
        arrived.set()
        await held.wait()
        yield SNEAKER[100:]

    async def run():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://x"
        ) as client:
            assert_problem(await client.get("/readyz"), 503, "overloaded")
            async with app.router.lifespan_context(app):
                assert (await client.get("/readyz")).status_code == 200
                found = await client.post("/classify?r=16", content=SNEAKER)
                assert found.json()["predictions"][0]["label"] == "Sneaker"
                accepted = asyncio.create_task(client.post("/classify?r=16", content=slow()))
                await arrived.wait()
                asyncio.get_running_loop().call_later(0.2, held.set)
            assert (await accepted).status_code == 200
            refusal = await client.post("/classify", content=SNEAKER)
            assert_problem(refusal, 503, "overloaded")
            assert refusal.json()["reason"] == "draining"

    asyncio.run(run())
    assert [supervisor.client.alive for supervisor in parts.engine.engines] == [False]


def test_what_cannot_start_ends_its_lifespan(tmp_path):
    config = tmp_path / "models.toml"
    config.write_text(
        '[[models]]\nname = "x"\ntimm = "vit_tiny_patch16_224"\ncheckpoint = "bad.safetensors"\n'
    )
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    app = create_server(Settings(**QUICK, config=config))

    async def run():
        async with app.router.lifespan_context(app):
            pytest.fail("it is not ready")

    with pytest.raises(EngineStartError, match=r"bad\.safetensors"):
        asyncio.run(run())
    assert not app.state.parts.engine.engines[0].client.alive


def test_a_mistake_in_the_catalog_is_told_before_anything_is_started(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        create_server(Settings(config=tmp_path / "none.toml"))
