"""The generator asks the server what its model takes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from server.media.modality import Modality
from tests.server.conftest import free_port
from tests.tome_load.fake_server import fake_server
from tome_load.served_model import served_modality

MODELS = [
    {"name": "old"},
    {"name": "pictures", "modality": "image"},
    {"name": "speech", "modality": "audio"},
]


def asked(models: Any, model: str = "", status: str = "200 OK", prefix: str = "") -> Modality:
    """Return what is found out from a server that answers with ``models``."""
    body = json.dumps({"models": models}).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(head + body)

    async def ask() -> Modality:
        async with fake_server(answer) as url:
            return await asyncio.to_thread(served_modality, url + prefix, model, "key", 20)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("model", "modality"),
    [
        ("", Modality.IMAGE),
        ("pictures", Modality.IMAGE),
        ("speech", Modality.AUDIO),
        ("unknown", Modality.IMAGE),
    ],
)
def test_of_the_model_by_name_or_else_of_the_first(model: str, modality: Modality) -> None:
    assert asked(MODELS, model) is modality


def test_below_a_path_prefix() -> None:
    assert asked(MODELS[2:], prefix="/prefix/") is Modality.AUDIO


@pytest.mark.parametrize("models", [None, [], [{}], ["a"], [{"name": "a", "modality": "smell"}]])
def test_another_answer_says_nothing(models: Any) -> None:
    assert asked(models) is Modality.IMAGE


def test_a_refusal_says_nothing() -> None:
    assert asked(MODELS[2:], status="401 Unauthorized") is Modality.IMAGE


@pytest.mark.parametrize("scheme", ["http", "unix"])
def test_no_answer_says_nothing(scheme: str, tmp_path: Path) -> None:
    url = f"unix:{tmp_path / 'none'}" if scheme == "unix" else f"http://127.0.0.1:{free_port()}"
    assert served_modality(url, "", "", 20) is Modality.IMAGE
