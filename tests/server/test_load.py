"""64 clients for 8 seconds: every answer is that of its image and `r`, in any batch."""

from __future__ import annotations

import asyncio
import io
import random
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.conftest import RunningServer
from tests.server.wire import EXAMPLES

CLASSES = 10
CLIENTS = 64
SECONDS = 8
SCHEDULES = [*map(str, range(26)), "16:-1", "13:0.5", "40,0,3", "98"]
StartServer = Callable[..., AbstractContextManager[RunningServer]]


def pictures() -> list[bytes]:
    """Every example that is an image in its eight orientations."""
    encoded = []
    for example in EXAMPLES.values():
        with Image.open(io.BytesIO(example)) as image:
            transposed = [image.transpose(method) for method in Image.Transpose]
            for oriented in (image, *transposed):
                file = io.BytesIO()
                oriented.save(file, "PNG")
                encoded.append(file.getvalue())
    return encoded


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float32", 1e-4)])
def test_every_answer_is_that_of_the_image_alone(
    start_server: StartServer, dtype: str, tolerance: float
) -> None:
    bodies = pictures()
    generator = random.Random(0)
    cases = [(generator.randrange(len(bodies)), generator.choice(SCHEDULES)) for _ in range(150)]

    async def classify(client: httpx.AsyncClient, case: tuple[int, str]) -> dict[str, Any]:
        image, r = case
        # All classes: which one is the last of the best five may change with a rounding.
        params: dict[str, str | int] = {"r": r, "top_k": CLASSES}
        response = await client.post("/classify", params=params, content=bodies[image])
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def main(url: str) -> list[int]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            alone = {case: await classify(client, case) for case in cases}
            end = time.monotonic() + SECONDS

            async def compare_until_end() -> list[int]:
                sizes = []
                while time.monotonic() < end:
                    case = generator.choice(cases)
                    answer = await classify(client, case)
                    expected = alone[case]
                    assert answer["r"] == case[1]
                    assert answer["tokens"] == expected["tokens"]
                    assert answer["predictions"][0]["score"] == max(scores(answer).values())
                    assert scores(answer) == pytest.approx(scores(expected), abs=tolerance)
                    sizes.append(answer["batch_size"])
                return sizes

            clients = [compare_until_end() for _ in range(CLIENTS)]
            sizes_of_clients = await asyncio.gather(*clients)
            return [size for sizes in sizes_of_clients for size in sizes]

    with start_server(dtype=dtype, max_batch=32) as server:
        sizes = asyncio.run(main(server.url))
        images = server.metric("tome_batch_images_sum")
        assert images == len(sizes) + len(cases)
        mean_batch = images / server.metric("tome_batch_images_count")
        failed = server.metric(
            'tome_requests_total{code="500",model="fashion-mnist",route="/classify"}'
        )
    # shown by `pytest -s -m slow`
    sys.stdout.write(
        f"{dtype}: {len(sizes)} correct answers, {len(sizes) / SECONDS:.0f} a second,"
        f" mean batch {mean_batch:.1f}\n"
    )
    assert mean_batch > 1
    assert failed == 0


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {prediction["label"]: prediction["score"] for prediction in answer["predictions"]}
