"""64 clients for 20 seconds: every answer belongs to its image and its `r`, whoever shared its
batch.
"""

from __future__ import annotations

import asyncio
import io
import random
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.conftest import RunningServer

CLIENTS = 64
SECONDS = 20
SCHEDULES = [*map(str, range(26)), "16:-1", "13:0.5", "40,0,3", "98"]
StartServer = Callable[..., AbstractContextManager[RunningServer]]


def pictures() -> list[bytes]:
    """Every example in its eight orientations."""
    encoded = []
    for path in sorted(Path("examples").iterdir()):
        with Image.open(path) as image:
            for turn in (None, *Image.Transpose):
                file = io.BytesIO()
                (image if turn is None else image.transpose(turn)).save(file, "PNG")
                encoded.append(file.getvalue())
    return encoded


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float32", 1e-4)])
def test_every_answer_is_that_of_the_image_alone(
    start_server: StartServer, dtype: str, tolerance: float
) -> None:
    bodies = pictures()
    draw = random.Random(0)
    cases = [(draw.randrange(len(bodies)), draw.choice(SCHEDULES)) for _ in range(150)]

    async def ask(client: httpx.AsyncClient, case: tuple[int, str]) -> dict[str, Any]:
        response = await client.post("/classify", params={"r": case[1]}, content=bodies[case[0]])
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def main(url: str) -> list[int]:
        async with httpx.AsyncClient(
            base_url=url, timeout=60, limits=httpx.Limits(max_connections=CLIENTS)
        ) as client:
            alone = {case: await ask(client, case) for case in cases}
            end = time.monotonic() + SECONDS

            async def go_on() -> list[int]:
                sizes = []
                while time.monotonic() < end:
                    case = draw.choice(cases)
                    answer = await ask(client, case)
                    expected = alone[case]
                    assert answer["r"] == case[1]
                    assert answer["tokens"] == expected["tokens"]
                    assert answer["predictions"][0]["label"] == expected["predictions"][0]["label"]
                    assert scores(answer) == pytest.approx(scores(expected), abs=tolerance)
                    sizes.append(answer["batch_size"])
                return sizes

            return [
                size
                for sizes in await asyncio.gather(*(go_on() for _ in range(CLIENTS)))
                for size in sizes
            ]

    with start_server(dtype=dtype, max_batch=32) as server:
        sizes = asyncio.run(main(server.url))
        assert server.metric("tome_batch_images_sum") == len(sizes) + len(cases)
        mean_batch = server.metric("tome_batch_images_sum") / server.metric(
            "tome_batch_images_count"
        )
        failed = server.metric(
            'tome_requests_total{code="500",model="fashion-mnist",route="/classify"}'
        )
    # shown by `pytest -s -m slow`
    sys.stdout.write(
        f"{dtype}: {len(sizes)} answers, all right; {len(sizes) / SECONDS:.0f} a second, mean batch"
        f" {mean_batch:.1f}\n"
    )
    assert mean_batch > 1
    assert failed == 0


def scores(answer: dict[str, Any]) -> list[float]:
    return [score for _, score in sorted((p["index"], p["score"]) for p in answer["predictions"])]
