"""The HTTP contract, checked from outside on a real server with the bundled model."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import shutil
import subprocess

import httpx
import pytest
from PIL import Image

from tests.server.wire import EXAMPLES, LEAKS, SNEAKER, assert_problem, read_response


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


class TestClassify:
    def test_a_response_has_predictions_tokens_and_times(self, client):
        response = client.post("/classify", params={"r": 16}, content=SNEAKER)
        assert response.status_code == 200
        answer = response.json()
        assert answer["predictions"][0]["label"] == "Sneaker"
        assert (answer["r"], answer["r_requested"]) == ("16", "16")
        assert answer["tokens"] == {"input": 197, "output": 11}
        assert set(answer) == {
            "model", "r", "r_requested", "merging", "predictions", "tokens", "timing_ms",
            "batch_size",
        }  # fmt: skip
        assert set(answer["timing_ms"]) == {"decode", "queue", "forward"}
        assert answer["timing_ms"]["forward"] > 0
        assert answer["batch_size"] >= 1
        scores = [prediction["score"] for prediction in answer["predictions"]]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        stages = response.headers["server-timing"].split(", ")
        assert [stage.partition(";dur=")[0] for stage in stages] == [
            "body",
            "decode",
            "queue",
            "forward",
        ]
        assert all(float(stage.partition("=")[2]) >= 0 for stage in stages)

    def test_without_r_the_original_model_runs(self, client):
        answer = client.post("/classify", content=SNEAKER).json()
        assert answer["r"] == "0"
        assert answer["tokens"]["output"] == 197

    @pytest.mark.parametrize(
        ("r", "used_r"), [("8:-1", "8:-1"), ("8:0", "8"), ("30,0,5", "30,0,5"), ("98", "98")]
    )
    def test_every_form_of_a_schedule_merges_tokens(self, client, r, used_r):
        answer = client.post("/classify", params={"r": r, "top_k": 10}, content=SNEAKER).json()
        assert (answer["r"], answer["r_requested"]) == (used_r, r)
        assert answer["tokens"]["output"] < 197
        assert sum(prediction["score"] for prediction in answer["predictions"]) == pytest.approx(
            1, abs=0.02
        )

    @pytest.mark.parametrize(
        "content_type", ["application/x-www-form-urlencoded", "text/plain", "image/gif", "nonsense"]
    )
    def test_the_content_decides_the_format_not_its_type(self, client, content_type):
        response = client.post("/classify", content=SNEAKER, headers={"Content-Type": content_type})
        assert response.status_code == 200

    def test_a_body_needs_no_content_length(self, client):
        def chunks():
            yield SNEAKER[:100]
            yield SNEAKER[100:]

        assert client.post("/classify", content=chunks()).status_code == 200

    def test_a_model_can_be_named(self, client):
        name = client.get("/models").json()["models"][0]["name"]
        assert (
            client.post("/classify", params={"model": name}, content=SNEAKER).json()["model"]
            == name
        )


FORM = {"Content-Type": "multipart/form-data; boundary=X"}


class TestMultipart:
    def test_one_file_gets_one_result(self, client):
        results = client.post("/classify?r=16", files={"any": SNEAKER}).json()["results"]
        assert [result["predictions"][0]["label"] for result in results] == ["Sneaker"]

    def test_many_files_get_their_results_in_order(self, client):
        names = list(EXAMPLES) * 3
        files = [("file", (name, EXAMPLES[name])) for name in names]
        results = client.post("/classify?r=16", files=files).json()["results"]
        for name, result in zip(names, results, strict=True):
            alone = client.post("/classify?r=16", content=EXAMPLES[name]).json()
            assert_same(result, alone)

    def test_a_bad_file_does_not_affect_the_others(self, client):
        bodies = [SNEAKER, b"", b"hello", SNEAKER[:200], png(2000, 1000), SNEAKER]
        response = client.post("/classify", files=[("file", ("name", body)) for body in bodies])
        assert response.status_code == 200
        results = response.json()["results"]
        assert [result.get("status", 200) for result in results] == [200, 400, 415, 400, 413, 200]
        assert results[2]["type"] == "urn:tome:problem:unsupported-format"
        assert not LEAKS.search(response.text)

    def test_a_body_without_files_is_refused(self, client):
        response = client.post("/classify", content=b"--X--\r\n", headers=FORM)
        assert_problem(response, 400, "bad-image")

    def test_a_malformed_body_is_refused(self, client):
        response = client.post("/classify", content=b"hello", headers=FORM)
        assert_problem(response, 400, "bad-image")


class TestBadInput:
    @pytest.mark.parametrize(
        ("body", "status", "slug"),
        [
            (b"", 400, "bad-image"),
            (SNEAKER[:300], 400, "bad-image"),
            (SNEAKER[:100] + b"\0" * 200, 400, "bad-image"),
            (b"hello", 415, "unsupported-format"),
            (b"II*\0" + b"\0" * 100, 415, "unsupported-format"),
            (b"\0" * 300_001, 413, "too-large"),
            (png(1001, 1000), 413, "too-large"),
            (png(4001, 1), 413, "too-large"),
        ],
        ids=["empty", "truncated", "corrupt", "text", "tiff", "bytes", "pixels", "side"],
    )
    def test_a_bad_body_gets_its_own_problem(self, client, body, status, slug):
        assert_problem(client.post("/classify", content=body), status, slug)

    @pytest.mark.parametrize(
        "query",
        [
            "r=-1",
            "r=99",
            "r=x",
            "r_max=x",
            "r=16:3",
            f"r={','.join('1' * 13)}",
            "top_k=0",
            "top_k=11",
            "top_k=x",
            "deadline_ms=0",
            "q=1",
            "r=1&r=2",
        ],
    )
    def test_a_bad_parameter_is_named(self, client, query):
        problem = assert_problem(
            client.post(f"/classify?{query}", content=SNEAKER), 422, "invalid-parameter"
        )
        assert problem["parameter"] == query.partition("=")[0]

    def test_an_unknown_model_is_answered_with_the_known_ones(self, client):
        problem = assert_problem(
            client.post("/classify?model=resnet", content=SNEAKER), 404, "not-found"
        )
        assert client.get("/models").json()["models"][0]["name"] in problem["detail"]

    def test_an_unknown_path_is_not_found(self, client):
        assert_problem(client.get("/nothing"), 404, "not-found")
        assert_problem(client.post("/classify/", content=SNEAKER), 404, "not-found")

    def test_a_wrong_method_is_answered_with_the_allowed_one(self, client):
        response = client.get("/classify")
        assert_problem(response, 405, "method-not-allowed")
        assert response.headers["allow"] == "POST"

    def test_a_missed_deadline_is_reported(self, client):
        assert_problem(
            client.post("/classify?deadline_ms=0.01", content=SNEAKER), 504, "deadline-exceeded"
        )

    def test_a_body_that_announces_too_many_bytes_is_refused_at_once(self, server):
        with server.connect() as connection:
            connection.sendall(
                b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
            )
            assert_problem(read_response(connection), 413, "too-large")

    def test_a_chunked_body_is_refused_once_it_has_too_many_bytes(self, server):
        with server.connect() as connection:
            connection.sendall(
                b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(8):
                connection.sendall(b"c350\r\n" + b"x" * 50_000 + b"\r\n")
            response = read_response(connection)
            assert_problem(response, 413, "too-large")
            assert response.headers["connection"] == "close"

    def test_a_body_that_arrives_too_slowly_is_refused(self, server):
        with server.connect() as connection:
            connection.sendall(
                b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow"
            )
            assert_problem(read_response(connection), 408, "slow-body")

    def test_wrong_parameters_are_reported_instead_of_100_continue(self, server):
        head = (
            "POST /classify?r={} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nExpect:"
            " 100-continue\r\n\r\n"
        )
        with server.connect() as connection:
            connection.sendall(head.format("x", 99).encode())
            response = read_response(connection)
            assert_problem(response, 422, "invalid-parameter")
            assert response.headers["connection"] == "close"
        with server.connect() as connection:
            connection.sendall(head.format("16", len(SNEAKER)).encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")
            connection.sendall(SNEAKER)
            assert read_response(connection).status_code == 200

    def test_bad_requests_do_not_affect_others(self, server):
        bad = [b"", b"hello", SNEAKER[:300], png(1001, 1000)]

        async def main():
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                bodies = [SNEAKER if index % 2 else bad[index // 2 % 4] for index in range(48)]
                return await asyncio.gather(
                    *(client.post("/classify?r=16", content=body) for body in bodies)
                )

        responses = asyncio.run(main())
        assert {response.status_code for response in responses[0::2]} == {400, 413, 415}
        for response in responses[1::2]:
            assert response.json()["predictions"][0]["label"] == "Sneaker"


class TestOtherEndpoints:
    def test_models_lists_every_level(self, client):
        (model,) = client.get("/models").json()["models"]
        assert re.fullmatch(r"[A-Za-z0-9._-]+", model["name"])
        assert set(model) == {
            "name", "aliases", "architecture", "modality", "input_size", "classes", "tokens",
            "blocks", "merging", "activation", "label_sets", "embedding_dim", "matryoshka",
            "r_max", "device", "dtype", "dtype_speedup", "acceleration", "levels",
        }  # fmt: skip
        assert model["classes"] == 10
        assert model["tokens"] == 197
        assert model["blocks"] == 12
        assert model["r_max"] == 98
        assert (model["embedding_dim"], model["matryoshka"]) == (128, False)
        assert [level["r"] for level in model["levels"]] == ["0", "16"]
        assert [level["tokens_out"] for level in model["levels"]] == [197, 11]
        assert set(model["levels"][0]) == {
            "r",
            "tokens_out",
            "relative_flops",
            "speedup",
            "accuracy",
            "agreement",
            "agreement_low",
            "margin",
            "margin_agreement",
            "cascade_accuracy",
            "cosine",
            "cosine_low",
            "cosine_p1",
            "cosine_p5",
            "recall_1",
            "recall_10",
            "mixed_recall_1",
            "mixed_recall_10",
        }
        assert model["levels"][0]["relative_flops"] == 1
        assert 0 < model["levels"][1]["relative_flops"] < 0.7

    @pytest.mark.parametrize("path", ["/healthz", "/readyz"])
    def test_a_ready_server_is_healthy(self, client, path):
        assert client.get(path).status_code == 200

    def test_metrics_has_all_series_of_a_request(self, client):
        client.post("/classify?r=16", content=SNEAKER)
        client.post("/classify?r=3", content=SNEAKER)
        text = client.get("/metrics").text
        for series in (
            'tome_requests_total{code="200",model="fashion-mnist",route="/classify"}',
            'tome_images_total{model="fashion-mnist",r="16"}',
            'tome_images_total{model="fashion-mnist",r="other"}',
            'tome_forward_seconds_total{model="fashion-mnist"}',
            'tome_r0_equivalent_seconds_total{model="fashion-mnist"}',
            'tome_speedup_ratio{model="fashion-mnist"}',
            'tome_predicted_seconds_total{model="fashion-mnist"}',
            'tome_prediction_error_ratio_count{model="fashion-mnist"}',
            'tome_stage_duration_seconds_count{stage="decode"}',
            'tome_engine_ready{engine="0"}',
            'tome_engine_heartbeat_timestamp_seconds{engine="0"}',
            'tome_engine_resident_bytes{engine="0"}',
            'tome_engine_restarts_total{engine="0"}',
        ):
            assert re.search(re.escape(series) + r" [0-9.e+]+$", text, re.MULTILINE), series
        families = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
        assert all(name.startswith("tome_") for name in families)

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
    def test_metrics_pass_the_checks_of_prometheus(self, client):
        client.post("/classify?r=16", content=SNEAKER)
        text = client.get("/metrics").text
        check = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert (check.returncode, check.stdout, check.stderr) == (0, "", "")

    def test_an_unknown_path_or_model_makes_no_series(self, client):
        client.post("/classify?model=secret-model", content=SNEAKER)
        client.get("/secret-path")
        text = client.get("/metrics").text
        assert "secret" not in text
        assert 'tome_requests_total{code="404",model="",route="/classify"}' in text

    def test_a_valid_request_id_is_kept_and_another_replaced(self, client):
        for valid in ("abc-123", "x" * 128):
            response = client.get("/healthz", headers={"X-Request-ID": valid})
            assert response.headers["x-request-id"] == valid
        for invalid in ("x" * 129, "a b", "", "ä".encode("latin-1")):
            response = client.get("/healthz", headers={"X-Request-ID": invalid})
            assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])

    def test_docs_load_nothing_from_other_servers(self, client):
        page = client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|@import|url\(""", page.text)

    def test_openapi_describes_parameters_bodies_and_errors(self, client):
        api = client.get("/openapi.json").json()
        operation = api["paths"]["/classify"]["post"]
        names = [parameter["name"] for parameter in operation["parameters"]]
        assert names == [
            "r", "model", "top_k", "deadline_ms", "r_max", "min_accuracy", "min_agreement",
            "min_fidelity", "confidence", "confidence_r", "text", "windows", "clips", "crops",
        ]  # fmt: skip
        assert set(operation["requestBody"]["content"]) == {
            "image/*", "audio/*", "video/*", "multipart/form-data", "application/json",
        }  # fmt: skip
        for status in ("400", "401", "404", "408", "413", "415", "422", "500", "503", "504"):
            assert set(operation["responses"][status]["content"]) == {"application/problem+json"}
        assert {"Answer", "Answers", "Problem"} <= set(api["components"]["schemas"])
        assert "HTTPValidationError" not in json.dumps(api)


def assert_same(one: dict, other: dict) -> None:
    """Two answers about one image agree, within the precision of bfloat16."""
    scores = {prediction["label"]: prediction["score"] for prediction in other["predictions"]}
    best = one["predictions"][0]
    assert best["label"] == other["predictions"][0]["label"]
    assert best["score"] == pytest.approx(scores[best["label"]], abs=2e-2)
    assert one["tokens"] == other["tokens"]


def test_64_clients_with_random_r_get_the_same_answers_as_one(server, client):
    cases = [(name, r) for name in EXAMPLES for r in ("0", "7", "16", "16:-1", "40,0,3")]
    alone = {
        case: client.post(f"/classify?r={case[1]}", content=EXAMPLES[case[0]]).json()
        for case in cases
    }
    generator = random.Random(0)

    async def classify_some(client: httpx.AsyncClient) -> int:
        """Send some cases. Return the size of the largest batch that one of them was in."""
        largest = 0
        for name, r in generator.choices(cases, k=3):
            response = await client.post(f"/classify?r={r}", content=EXAMPLES[name])
            assert response.status_code == 200, response.text
            assert_same(response.json(), alone[name, r])
            largest = max(largest, response.json()["batch_size"])
        return largest

    async def main() -> list[int]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(classify_some(client) for _ in range(64)))

    assert max(asyncio.run(main())) > 1
