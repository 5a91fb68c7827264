"""Second passes on a real server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import httpx
import pytest

from tests.server.conftest import ROOT, RunningServer

SNEAKER = (ROOT / "examples/sneaker.jpg").read_bytes()


def classify(server: RunningServer, query: str, content: bytes = SNEAKER) -> dict[str, object]:
    response = httpx.post(f"{server.url}/classify?{query}", content=content, timeout=30)
    response.raise_for_status()
    answer: dict[str, object] = response.json()
    return answer


def scores(answer: dict[str, object]) -> list[float]:
    predictions = answer["predictions"]
    assert isinstance(predictions, list)
    return [prediction["score"] for prediction in predictions]


def test_the_second_pass_has_the_answer_of_its_r(default_server: RunningServer) -> None:
    exact = classify(default_server, "r=0")
    again = classify(default_server, "r=20&confidence=1")
    assert [one["r"] for one in again["passes"]] == ["20", "0"]  # type: ignore[attr-defined]
    assert again["confident"] is True
    assert (again["r"], again["tokens"]) == (exact["r"], exact["tokens"])
    assert scores(again) == pytest.approx(scores(exact), abs=1e-2)  # batches differ in rounding


def test_an_image_that_is_certain_has_the_answer_of_the_first_pass(
    default_server: RunningServer,
) -> None:
    merged = classify(default_server, "r=20&top_k=1")
    certain = classify(default_server, "r=20&confidence=0&top_k=1")
    assert (len(certain["passes"]), certain["confident"]) == (1, True)  # type: ignore[arg-type]
    assert certain["r"] == "20"
    assert scores(certain) == pytest.approx(scores(merged), abs=1e-2)


def test_metrics_count_how_images_ended(
    start_server: Callable[..., AbstractContextManager[RunningServer]],
) -> None:
    with start_server() as server:
        for _ in range(4):
            classify(server, "r=20&confidence=1")
        classify(server, "r=20&confidence=0")
        counts = {
            result: server.metric(
                f'tome_cascade_images_total{{model="fashion-mnist",result="{result}"}}'
            )
            for result in ("certain", "again", "uncertain", "failed")
        }
        assert counts == {"certain": 1, "again": 4, "uncertain": 0, "failed": 0}
        assert server.metric("tome_batch_images_sum") == 9


def test_slots_come_back_whether_an_image_runs_again_or_not(
    start_server: Callable[..., AbstractContextManager[RunningServer]],
) -> None:
    with (
        start_server(queue_limit=3) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        for confidence in (0, 1) * 5:
            response = client.post(f"/classify?r=20&confidence={confidence}", content=SNEAKER)
            assert response.status_code == 200, response.text
