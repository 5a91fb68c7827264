"""Features and pictures over HTTP, on a real server. The limits of /classify hold for them too."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from server.catalog.entries import read_catalog
from server.commands.offline import load_runner
from server.engine.execution.runner import Runner
from server.imaging.decode import decode
from server.imaging.visualization import draw_regions
from server.media.transforms import ImageTransform
from server.settings import ModelSettings
from tests.server.wire import EXAMPLES, SNEAKER, assert_problem, finish, half_sent

RAW = {"Accept": "application/octet-stream"}


@pytest.fixture(scope="module")
def runner() -> Runner:
    """The bundled model as the server runs it, in this process."""
    return load_runner(ModelSettings(threads=1), read_catalog(None, ())[0])


def pixels(runner: Runner, encoded: bytes) -> np.ndarray:
    transform = runner.model.transform
    assert isinstance(transform, ImageTransform)
    return decode(encoded, transform, 1_000_000, 4000)


def embed(runner: Runner, encoded: bytes, r: int) -> np.ndarray:
    """The features by tome_core itself, without a server."""
    (mean,) = runner.model.mean
    (std,) = runner.model.std
    images = (torch.from_numpy(np.stack([pixels(runner, encoded)])) / 255 - mean) / std
    with torch.inference_mode():
        return runner.model.network.embed(images, r=r)[0].float().numpy()


def count_regions(picture: bytes) -> int:
    """The number of outlines in the picture of a grey image: only outlines have a colour."""
    colours = np.unique(np.asarray(Image.open(io.BytesIO(picture))).reshape(-1, 3), axis=0)
    return int((colours.min(axis=1) != colours.max(axis=1)).sum())


def timed_stages(response: httpx.Response) -> list[str]:
    """The stages that ``Server-Timing`` names, in order."""
    return [entry.partition(";")[0] for entry in response.headers["server-timing"].split(", ")]


def form_files(bodies: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", ("name", body)) for body in bodies]


class TestEmbed:
    @pytest.mark.parametrize("r", [0, 16])
    def test_features_are_those_of_the_core(self, client, runner, r):
        response = client.post("/embed", params={"r": r}, content=SNEAKER)
        assert response.status_code == 200
        answer = response.json()
        assert set(answer) == {
            "model",
            "r",
            "r_requested",
            "merging",
            "embedding",
            "tokens",
            "timing_ms",
            "batch_size",
        }
        assert (answer["model"], answer["r"], answer["r_requested"]) == (
            "fashion-mnist",
            str(r),
            str(r),
        )
        assert answer["tokens"] == {"input": 197, "output": 11 if r else 197}
        expected = embed(runner, SNEAKER, r)
        assert len(answer["embedding"]) == 128
        np.testing.assert_allclose(
            answer["embedding"], expected, atol=0.02 * np.abs(expected).max()
        )
        assert timed_stages(response) == ["body", "decode", "queue", "forward"]

    def test_raw_features_are_the_numbers_of_json(self, client):
        numbers = client.post("/embed?r=16", content=SNEAKER).json()["embedding"]
        response = client.post("/embed?r=16", content=SNEAKER, headers=RAW)
        assert response.headers["content-type"] == "application/octet-stream"
        assert "server-timing" in response.headers
        np.testing.assert_allclose(np.frombuffer(response.content, "<f4"), numbers, atol=1e-3)

    def test_normalised_features_have_length_1(self, client):
        plain = np.array(client.post("/embed?r=16", content=SNEAKER).json()["embedding"])
        for query in ("normalize=true", "normalize=True"):
            path = f"/embed?r=16&{query}"
            numbers = np.array(client.post(path, content=SNEAKER).json()["embedding"])
            raw = np.frombuffer(client.post(path, content=SNEAKER, headers=RAW).content, "<f4")
            np.testing.assert_allclose(np.linalg.norm([numbers, raw], axis=1), 1, atol=1e-6)
            np.testing.assert_allclose(numbers, plain / np.linalg.norm(plain), atol=0.01)
        same = client.post("/embed?r=16&normalize=false", content=SNEAKER).json()["embedding"]
        np.testing.assert_allclose(same, plain, atol=0.02 * np.abs(plain).max())

    def test_each_file_gets_its_own_result(self, client):
        bodies = [EXAMPLES["bag"], b"hello", SNEAKER]
        results = client.post("/embed?r=16", files=form_files(bodies)).json()["results"]
        assert [result.get("status", 200) for result in results] == [200, 415, 200]
        for body, result in zip(bodies[::2], results[::2], strict=True):
            alone = client.post("/embed?r=16", content=body).json()["embedding"]
            np.testing.assert_allclose(result["embedding"], alone, atol=0.02 * np.abs(alone).max())

    def test_raw_features_of_several_files_are_in_their_order(self, client):
        names = ["bag", "sneaker", "trouser"]
        response = client.post(
            "/embed?r=16", files=form_files([EXAMPLES[name] for name in names]), headers=RAW
        )
        assert response.headers["content-type"] == "application/octet-stream"
        rows = np.frombuffer(response.content, "<f4").reshape(3, 128)
        for name, row in zip(names, rows, strict=True):
            alone = client.post("/embed?r=16", content=EXAMPLES[name]).json()["embedding"]
            np.testing.assert_allclose(row, alone, atol=0.02 * np.abs(alone).max())

    def test_one_bad_file_fails_a_request_for_raw_features(self, client, server, eventually):
        response = client.post(
            "/embed?r=16", files=form_files([SNEAKER, SNEAKER, b"hello", SNEAKER]), headers=RAW
        )
        assert assert_problem(response, 415, "unsupported-format")["index"] == 2
        eventually(lambda: server.metric("tome_queue_jobs") == 0)
        assert (
            client.post("/embed?r=16", files=form_files([SNEAKER] * 8), headers=RAW).status_code
            == 200
        )


class TestVisualize:
    @pytest.mark.parametrize(("r", "expected"), [("0", 196), ("8", 100), ("16", 10)])
    def test_every_region_is_outlined(self, client, r, expected):
        response = client.post("/visualize", params={"r": r}, content=SNEAKER)
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(response.content)) as picture:
            assert picture.size == (224, 224)
        assert count_regions(response.content) == expected
        assert timed_stages(response) == ["body", "decode", "queue", "forward", "picture"]

    def test_without_merging_every_patch_is_a_region(self, client, runner):
        picture = np.asarray(
            Image.open(io.BytesIO(client.post("/visualize?r=0", content=SNEAKER).content))
        )
        expected = draw_regions(pixels(runner, SNEAKER), np.arange(197), 1, (14, 14))
        np.testing.assert_array_equal(picture, np.asarray(expected))

    def test_a_request_has_one_picture(self, client):
        response = client.post("/visualize?r=16", files={"file": SNEAKER})
        assert count_regions(response.content) == 10
        two = client.post("/visualize?r=16", files=[("file", ("name", SNEAKER))] * 2)
        assert "2 files" in assert_problem(two, 400, "bad-image")["detail"]
        assert_problem(
            client.post("/visualize", files={"file": b"hello"}), 415, "unsupported-format"
        )


@pytest.mark.parametrize("path", ["/embed", "/visualize"])
class TestLimitsOfClassify:
    def test_bodies_that_are_not_allowed(self, client, path):
        for body, status, slug in (
            (b"", 400, "bad-image"),
            (SNEAKER[:300], 400, "bad-image"),
            (b"hello", 415, "unsupported-format"),
            (b"\0" * 300_001, 413, "too-large"),
        ):
            assert_problem(client.post(path, content=body, headers=RAW), status, slug)

    @pytest.mark.parametrize(
        "query", ["r=99", "r=x", "top_k=3", "deadline_ms=0", "q=1", "normalize=1"]
    )
    def test_parameters_that_are_not_allowed(self, client, path, query):
        problem = assert_problem(
            client.post(f"{path}?{query}", content=SNEAKER), 422, "invalid-parameter"
        )
        assert problem["parameter"] == query.partition("=")[0]

    def test_unknown_models_other_methods_and_missed_deadlines(self, client, path):
        assert_problem(client.post(f"{path}?model=resnet", content=SNEAKER), 404, "not-found")
        assert client.get(path).headers["allow"] == "POST"
        assert_problem(
            client.post(f"{path}?deadline_ms=0.01", content=SNEAKER), 504, "deadline-exceeded"
        )

    def test_requests_and_images_are_counted(self, client, server, path):
        series = f'tome_requests_total{{code="200",model="fashion-mnist",route="{path}"}}'
        images = 'tome_images_total{model="fashion-mnist",r="16"}'
        before = server.metric(series), server.metric(images)
        client.post(f"{path}?r=16", content=SNEAKER)
        assert (server.metric(series), server.metric(images)) == (before[0] + 1, before[1] + 1)

    def test_the_request_of_a_client_that_disconnects_is_cancelled(self, server, eventually, path):
        for _ in range(4):  # these disconnect while their image is decoded, waits, runs or is drawn
            connection = half_sent(server, path)
            connection.sendall(SNEAKER[100:])
            connection.close()
        assert finish(half_sent(server, path)).status_code == 200
        eventually(lambda: server.metric("tome_inflight_requests") == 1)
        eventually(lambda: server.metric("tome_queue_jobs") == 0)

    def test_openapi_has_parameters_content_and_problems(self, client, path):
        operation = client.get("/openapi.json").json()["paths"][path]["post"]
        of_vectors = ["normalize"] if path == "/embed" else []
        assert [parameter["name"] for parameter in operation["parameters"]] == [
            "r", "model", "deadline_ms", "r_max", "min_accuracy", "min_agreement", "min_fidelity",
            *of_vectors, "windows", "clips", "crops",
        ]  # fmt: skip
        media = {
            "/embed": {"application/json", "application/octet-stream"},
            "/visualize": {"image/png"},
        }[path]
        assert set(operation["responses"]["200"]["content"]) == media
        for status in ("400", "404", "408", "413", "415", "422", "500", "503", "504"):
            assert set(operation["responses"][status]["content"]) == {"application/problem+json"}


def test_images_of_all_routes_share_batches(server, runner):
    expected = embed(runner, SNEAKER, 16)

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            paths = ["/classify", "/embed", "/visualize"] * 8
            return await asyncio.gather(
                *(client.post(f"{path}?r=16", content=SNEAKER) for path in paths)
            )

    responses = asyncio.run(main())
    assert {response.status_code for response in responses} == {200}
    for response in responses[0::3]:
        assert response.json()["predictions"][0]["label"] == "Sneaker"
    for response in responses[1::3]:
        np.testing.assert_allclose(
            response.json()["embedding"], expected, atol=0.05 * np.abs(expected).max()
        )
    assert {count_regions(response.content) for response in responses[2::3]} == {10}
    assert max(response.json()["batch_size"] for response in responses[0::3] + responses[1::3]) > 1


@pytest.fixture(scope="module")
def others(others_server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=others_server.url, timeout=30) as client:
        yield client


class TestOtherModels:
    def test_a_model_without_a_classifier_serves_features_only(self, others):
        models = others.get("/models").json()["models"]
        classes = {model["name"]: model["classes"] for model in models}
        assert classes == {"bare": 0, "many": 7, "plain": 7, "paired": 7}
        problem = assert_problem(
            others.post("/classify", content=SNEAKER), 422, "invalid-parameter"
        )
        assert problem["detail"].startswith("bare has no classifier; it serves /embed, /visualize,")
        assert len(others.post("/embed?r=2", content=SNEAKER).json()["embedding"]) == 32

    def test_a_picture_that_is_not_square(self, others):
        response = others.post("/visualize?r=0", content=SNEAKER)
        picture = np.asarray(Image.open(io.BytesIO(response.content)))
        assert picture.shape == (64, 32, 3)
        assert len({tuple(picture[y, x]) for y in range(0, 64, 16) for x in range(0, 32, 16)}) == 8

    def test_sigmoid_scores_are_those_of_the_logits(self, others):
        def scores(model: str) -> dict[int, float]:
            answer = others.post(f"/classify?model={model}&top_k=7", content=SNEAKER).json()
            return {
                prediction["index"]: prediction["score"] for prediction in answer["predictions"]
            }

        sigmoid = scores("many")
        logits = scores("plain")
        assert list(sigmoid) == list(logits)
        for index, logit in logits.items():
            assert sigmoid[index] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
        assert not 0.99 < sum(sigmoid.values()) < 1.01

    def test_a_model_merges_by_the_rule_of_its_entry(self, others):
        def answer(model: str, r: int) -> dict[str, Any]:
            return others.post(f"/classify?model={model}&r={r}", content=SNEAKER).json()

        rules = {
            model["name"]: model["merging"] for model in others.get("/models").json()["models"]
        }
        assert rules == {"bare": "paper", "many": "paper", "plain": "paper", "paired": "pairs"}
        assert answer("plain", 0)["predictions"] == answer("paired", 0)["predictions"]
        plain = answer("plain", 2)
        paired = answer("paired", 2)
        assert (plain["merging"], paired["merging"]) == ("paper", "pairs")
        assert plain["tokens"] == paired["tokens"] == {"input": 9, "output": 5}
        assert plain["predictions"] != paired["predictions"]
