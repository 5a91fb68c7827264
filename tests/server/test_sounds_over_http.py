"""A real server of a tiny model of sound and one of images: answers, refusals, few slots."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.server.conftest import RunningServer, eventually
from tests.server.tiny_ear import LABELS, WINDOW_SECONDS, sound, write_models
from tests.server.wire import EXAMPLES, SNEAKER, assert_problem, read_response

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from tests.hostile.sounds import SLUGS, hostile_sounds

EAR = "/classify?model=ear"
SLOTS = 2
DECODE_SECONDS = 10  # a busy machine takes seconds for the longest sound
START = Callable[..., AbstractContextManager[RunningServer]]


@pytest.fixture(scope="module")
def ears(start_server: START, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(
        config=write_models(tmp_path_factory.mktemp("ears")),
        dtype="float32",
        queue_limit=SLOTS,
        max_windows=100,
        max_body_bytes=400_000,
        max_audio_bytes=9_000_000,
        media_decode_timeout=DECODE_SECONDS,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(ears: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=ears.url, timeout=60) as client:
        yield client


def scores(answer: dict) -> list[float]:
    by_class = {each["index"]: each["score"] for each in answer["predictions"]}
    return [by_class[index] for index in sorted(by_class)]


class TestAnswers:
    def test_a_sound_is_answered_as_an_image_is_with_what_it_is(self, client):
        answer = client.post(f"{EAR}&top_k=2&r=4", content=sound(1.5, rate=8000)).json()
        assert list(answer) == [
            "model", "r", "r_requested", "merging", "predictions", "tokens", "timing_ms",
            "batch_size",
            "modality", "media",
        ]  # fmt: skip
        assert (answer["model"], answer["r"], answer["modality"]) == ("ear", "4", "audio")
        assert answer["media"] == {"seconds": 1.5, "sample_rate": 8000, "channels": 1}
        assert answer["tokens"] == {"input": 66, "output": 58}
        assert len(answer["predictions"]) == 2
        assert {each["label"] for each in answer["predictions"]} <= set(LABELS)

    def test_the_answer_of_an_image_is_as_ever(self, client):
        answer = client.post("/classify?model=tiny", content=SNEAKER).json()
        assert list(answer) == [
            "model", "r", "r_requested", "merging", "predictions", "tokens", "timing_ms",
            "batch_size",
        ]  # fmt: skip

    def test_each_window_has_its_time_and_the_mean_is_theirs(self, client):
        body = sound(3.2, seed=1)
        answer = client.post(f"{EAR}&windows=each", content=body).json()
        windows = answer["windows"]
        assert [window["start"] for window in windows] == pytest.approx(
            [0, WINDOW_SECONDS, 3.2 - WINDOW_SECONDS], abs=0.03
        )
        assert windows[-1]["end"] == pytest.approx(3.2, abs=0.03)
        mean = np.mean([scores(window) for window in windows], axis=0)
        assert scores(answer) == pytest.approx(mean, abs=1e-6)
        assert scores(client.post(EAR, content=body).json()) == pytest.approx(mean, abs=1e-5)
        first = client.post(f"{EAR}&windows=first", content=body).json()
        assert scores(first) == pytest.approx(scores(windows[0]), abs=1e-5)

    def test_features_are_a_mean_or_rows(self, client):
        body = sound(2.5)
        each = client.post("/embed?model=ear&windows=each", content=body).json()
        rows = np.array([window["embedding"] for window in each["windows"]])
        assert np.allclose(each["embedding"], rows.mean(axis=0), atol=1e-6)
        raw = {"Accept": "application/octet-stream"}
        answer = client.post("/embed?model=ear&windows=each", content=body, headers=raw)
        assert np.allclose(np.frombuffer(answer.content, "<f4").reshape(2, -1), rows, atol=1e-5)
        answer = client.post("/embed?model=ear", content=body, headers=raw)
        assert np.allclose(np.frombuffer(answer.content, "<f4"), each["embedding"], atol=1e-5)

    def test_normalised_features_are_the_mean_and_each_window_of_length_1(self, client):
        body = sound(2.5)
        plain = client.post("/embed?model=ear&windows=each", content=body).json()
        path = "/embed?model=ear&windows=each&normalize=true"
        scaled = client.post(path, content=body).json()
        raw = client.post(path, content=body, headers={"Accept": "application/octet-stream"})
        rows = [window["embedding"] for window in scaled["windows"]]
        assert np.allclose(np.linalg.norm([scaled["embedding"], *rows], axis=1), 1, atol=1e-6)
        assert np.allclose(np.frombuffer(raw.content, "<f4").reshape(2, -1), rows, atol=1e-5)
        mean = np.array(plain["embedding"])
        assert np.allclose(scaled["embedding"], mean / np.linalg.norm(mean), atol=1e-5)

    def test_a_sound_is_an_input_of_openais_embeddings(self, client):
        body = sound(2.5)
        expected = client.post("/embed?model=ear&normalize=true", content=body).json()
        text = "data:audio/wav;base64," + base64.b64encode(body).decode()
        message = {"model": "ear", "input": text}
        answer = client.post("/v1/embeddings", json=message).json()
        (item,) = answer["data"]
        assert np.allclose(item["embedding"], expected["embedding"], atol=1e-5)
        assert answer["usage"]["prompt_tokens"] == 2 * expected["tokens"]["input"]
        assert item["tome"]["media"] == expected["media"]
        refused = client.post("/v1/embeddings", json=message | {"windows": "each"})
        assert refused.status_code == 400
        assert "first and mean" in refused.json()["error"]["message"]

    def test_a_picture_has_the_first_window_or_all(self, client):
        assert_pictures_stack(client, "/visualize?model=ear", sound(2.5))

    def test_the_scheduler_may_choose_r(self, client):
        answer = client.post(f"{EAR}&r=auto&windows=each", content=sound(2.5)).json()
        assert answer["r_requested"] == "auto"
        assert answer["r"] in {window["r"] for window in answer["windows"]}

    def test_files_and_base64_are_answered_each_in_its_place(self, client):
        files = [("a", ("a.wav", sound(1), "audio/wav")), ("b", ("b.txt", b"text"))]
        good, bad = client.post(EAR, files=files).json()["results"]
        assert (good["modality"], bad["status"]) == ("audio", 415)
        text = base64.b64encode(sound(1)).decode()
        assert scores(client.post(EAR, json={"audio": text}).json()) == scores(good)
        (listed,) = client.post(EAR, json={"audios": [text]}).json()["results"]
        assert scores(listed) == scores(good)

    def test_the_models_say_what_they_take(self, client):
        tiny, ear = client.get("/models").json()["models"]
        assert tiny["modality"] == "image"
        assert "window_seconds" not in tiny
        assert (ear["modality"], ear["input_size"]) == ("audio", [1, 128, 128])
        assert (ear["window_seconds"], ear["max_windows"], ear["max_channels"]) == (1.28, 100, 8)
        assert ear["max_seconds"] == 120

    @pytest.mark.parametrize(
        ("path", "schema"),
        [
            (EAR, "SoundAnswer"),
            (f"{EAR}&windows=each", "SoundAnswerByWindow"),
            ("/embed?model=ear", "SoundEmbedding"),
            ("/embed?model=ear&windows=each", "SoundEmbeddingByWindow"),
        ],
    )
    def test_answers_are_those_that_are_documented(self, client, path, schema):
        window = "Window" + schema.removeprefix("Sound").removesuffix("ByWindow")
        assert_documented(client, path, sound(2.5), (schema, "SoundMedia", window))


def assert_pictures_stack(client: httpx.Client, path: str, body: bytes) -> None:
    """The picture of two windows is that of the first, and another one below."""
    sizes = []
    for query in ("", "&windows=each"):
        answer = client.post(f"{path}&r=8{query}", content=body)
        assert (answer.status_code, answer.headers["x-tome-r"]) == (200, "8")
        sizes.append(Image.open(io.BytesIO(answer.content)).size)
    (width, height), (both_width, both_height) = sizes
    assert both_width == width
    assert both_height > 2 * height


def assert_documented(
    client: httpx.Client, path: str, body: bytes, schemas: tuple[str, str, str]
) -> None:
    """An answer has the members of the schemas of itself, of its media and of its windows."""
    schema, media_schema, window_schema = schemas
    api = client.get("/openapi.json").json()
    answer = client.post(path, content=body).json()
    assert_has_members(answer, schema, api)
    assert_has_members(answer["media"], media_schema, api)
    for window in answer.get("windows", ()):
        assert_has_members(window, window_schema, api)
    success = api["paths"][path.partition("?")[0]]["post"]["responses"]["200"]["content"]
    allowed = success["application/json"]["schema"]["anyOf"]
    assert {"$ref": f"#/components/schemas/{schema}"} in allowed
    (listed,) = client.post(path, files=[("a", ("a", body))]).json()["results"]
    assert list(listed) == list(answer)


def assert_has_members(answer: dict, name: str, api: dict) -> None:
    """``answer`` has the members of a schema, all of which are required, and no others."""
    schema = api["components"]["schemas"][name]
    assert set(answer) == set(schema["properties"]) == set(schema["required"])


class TestProtocol:
    PATH = "/v2/models/ear/infer"

    def test_the_model_has_an_input_of_sound(self, client):
        inputs = client.get("/v2/models/ear").json()["inputs"]
        assert inputs == [
            {"name": "audio", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 1, 128, 128]},
        ]

    def infer(self, client: httpx.Client, tensor: dict, **parameters: object) -> httpx.Response:
        return client.post(self.PATH, json={"inputs": [tensor], "parameters": parameters})

    def test_sounds_and_inputs_of_the_model_are_answered(self, client):
        body = sound(2.5)
        text = base64.b64encode(body).decode()
        tensor = {"name": "audio", "datatype": "BYTES", "shape": [2], "data": [text, text]}
        answer = self.infer(client, tensor, top_k=1).json()
        labels, values = (output["data"] for output in answer["outputs"])
        expected = client.post(EAR, content=body).json()["predictions"][0]
        assert labels == [expected["label"]] * 2
        assert values == pytest.approx([expected["score"]] * 2, abs=1e-5)

        tensor = {"name": "pixel_values", "datatype": "FP32", "shape": [1, 1, 128, 128]}
        answer = self.infer(client, {**tensor, "data": [0.5] * 128 * 128}).json()
        assert answer["outputs"][1]["shape"] == [1, 3]

    def test_the_input_of_the_model_is_normalised(self, client):
        tensor = {"name": "pixel_values", "datatype": "UINT8", "shape": [1, 1, 128, 128]}
        answer = self.infer(client, {**tensor, "data": [5] * 128 * 128})
        assert answer.status_code == 400
        assert "pixel_values must be FP32, not UINT8" in answer.json()["error"]

    def test_an_image_is_no_input_and_each_window_no_output(self, client):
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}
        answer = self.infer(client, tensor)
        assert answer.status_code == 400
        assert "there are audio (BYTES) and pixel_values (FP32)" in answer.json()["error"]
        answer = self.infer(client, {**tensor, "name": "audio"}, windows="each")
        assert answer.status_code == 422


def assert_statuses(
    client: httpx.Client, path: str, hostile: Mapping[str, tuple[bytes, int]]
) -> None:
    """Each body gets the status that it has by its name; those that are refused, a problem."""
    for name, (body, status) in hostile.items():
        response = client.post(path, content=body)
        if status == 200:
            assert response.status_code == 200, (name, response.text)
        else:
            assert_problem(response, status, SLUGS[status])


class TestRefusals:
    def test_every_hostile_sound_gets_its_status(self, client):
        assert_statuses(client, EAR, hostile_sounds())

    def test_a_body_of_the_other_modality_is_named(self, client):
        problem = assert_problem(client.post(EAR, content=SNEAKER), 415, "unsupported-format")
        assert "an image (JPEG); ear takes sounds: allowed are WAV" in problem["detail"]
        response = client.post("/classify?model=tiny", content=sound(1))
        problem = assert_problem(response, 415, "unsupported-format")
        assert "a sound (WAV); tiny takes images: allowed are JPEG" in problem["detail"]

    def test_each_modality_has_its_own_limit_of_bytes(self, client):
        body = bytes(450_000)
        assert_problem(client.post("/classify?model=tiny", content=body), 413, "too-large")
        assert_problem(client.post(EAR, content=body), 415, "unsupported-format")
        problem = assert_problem(client.post(EAR, content=bytes(9_000_001)), 413, "too-large")
        assert problem["limit"] == 9_000_000

    def test_an_image_has_no_windows(self, client):
        response = client.post("/classify?model=tiny&windows=each", content=SNEAKER)
        assert assert_problem(response, 422, "invalid-parameter")["parameter"] == "windows"


def answered(client: httpx.Client, path: str, body: bytes) -> httpx.Response:
    """The answer of a server that may be full for a while."""
    end = time.monotonic() + 60
    while True:
        response = client.post(path, content=body)
        if response.status_code != 503:
            return response
        assert response.json()["reason"] == "queue-full"
        assert time.monotonic() < end, "the server stays full"
        time.sleep(0.01)


def test_sounds_of_more_windows_than_slots_are_all_answered(client):
    bodies = [sound(6.4, seed) for seed in range(3)] + [SNEAKER]
    paths = [f"{EAR}&windows=each"] * 3 + ["/classify?model=tiny"]
    expected = [client.post(path, content=body) for path, body in zip(paths, bodies, strict=True)]
    assert [len(answer.json().get("windows", ())) for answer in expected] == [5, 5, 5, 0]

    def send(number: int) -> httpx.Response:
        return answered(client, paths[number % 4], bodies[number % 4])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(32)))
    for number, answer in enumerate(answers):
        assert answer.status_code == 200, answer.text
        assert scores(answer.json()) == pytest.approx(scores(expected[number % 4].json()), abs=1e-4)


def lost(server: RunningServer, reason: str) -> float:
    return server.metric(f'tome_decode_workers_lost_total{{reason="{reason}"}}')


def head(path: str, body: bytes) -> bytes:
    """The header of a request."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()


def stop_decoders(server: RunningServer) -> None:
    """Stop the decode workers, so that whoever sends a sound waits."""
    signal_decoders(server, signal.SIGSTOP)


def continue_decoders(server: RunningServer) -> None:
    signal_decoders(server, signal.SIGCONT)


def signal_decoders(server: RunningServer, number: signal.Signals) -> None:
    for worker in server.decode_workers():
        with contextlib.suppress(ProcessLookupError):  # the server is just replacing it
            os.kill(worker, number)


def test_a_client_that_disconnects_while_its_sound_is_decoded_costs_a_worker(ears, client):
    before = lost(ears, "cancelled")
    cancelled = 'tome_cancelled_total{stage="decode"}'
    cancelled_before = ears.metric(cancelled)
    stop_decoders(ears)
    body = sound(1)
    with ears.connect() as connection:
        connection.sendall(head(EAR, body) + body)
        eventually(lambda: ears.metric("tome_inflight_requests") >= 2)  # and the scrape itself
    eventually(lambda: lost(ears, "cancelled") > before)
    eventually(lambda: ears.metric(cancelled) > cancelled_before)
    continue_decoders(ears)
    assert client.post(EAR, content=body).status_code == 200


def test_a_decoder_that_hangs_costs_its_own_sound_alone(ears, client):
    before = lost(ears, "timeout")
    stop_decoders(ears)
    problem = assert_problem(client.post(EAR, content=sound(1)), 413, "too-large")
    assert problem["detail"] == f"decoding took more than {DECODE_SECONDS} s"
    assert lost(ears, "timeout") == before + 1
    continue_decoders(ears)
    assert client.post(EAR, content=sound(1)).status_code == 200
    assert client.post("/classify?model=tiny", content=EXAMPLES["bag"]).status_code == 200


def serves(worker: int) -> bool:
    """Whether a decode worker has started: it gives up privileges at the end of its start."""
    try:
        return "NoNewPrivs:\t1" in Path(f"/proc/{worker}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_workers_that_are_killed_under_load_cost_their_own_sounds_alone(ears, client):
    kills = 20
    before = lost(ears, "crash")
    body = sound(6.4)
    expected = scores(client.post(EAR, content=body).json())
    stopped: list[bool] = []

    def kill_one() -> bool:
        """Kill a worker, if both serve; return whether there were enough."""
        workers = ears.decode_workers()
        if len(workers) == 2 and all(serves(worker) for worker in workers):
            os.kill(workers[0], signal.SIGKILL)
        return lost(ears, "crash") >= before + kills

    def send(number: int) -> list[httpx.Response]:
        answers = []
        while not stopped:
            path, content = (EAR, body) if number else ("/classify?model=tiny", SNEAKER)
            answers.append(answered(client, path, content))
        return answers

    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(send, number) for number in range(4)]
        try:
            eventually(kill_one, 120)
        finally:
            stopped.append(True)
        images, *sounds = [future.result() for future in sending]
    assert {answer.status_code for answer in images} == {200}
    answers = [answer for sent in sounds for answer in sent]
    failed = [answer for answer in answers if answer.status_code != 200]
    assert len(failed) <= lost(ears, "crash") - before
    for answer in failed:
        assert_problem(answer, 400, "bad-media")
    for answer in answers:
        if answer.status_code == 200:
            assert scores(answer.json()) == pytest.approx(expected, abs=1e-4)
    eventually(lambda: len(ears.decode_workers()) == 2)


@pytest.mark.slow
def test_a_drain_answers_sounds_in_flight_and_leaves_no_process(start_server, tmp_path):
    settings = {"config": write_models(tmp_path), "queue_limit": 4, "media_decode_timeout": 30}
    with start_server(**settings) as server:
        workers = server.decode_workers()
        assert len(workers) == 2
        stop_decoders(server)
        body = sound(6.4)
        with ThreadPoolExecutor(3) as pool:
            sending = [
                pool.submit(httpx.post, f"{server.url}{EAR}", content=body, timeout=60)
                for _ in range(3)
            ]
            eventually(lambda: server.metric("tome_inflight_requests") >= 4)
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: not server.ready())
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            answers = [future.result() for future in sending]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert server.process.wait(60) == 0
    eventually(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))


@pytest.mark.slow
def test_an_engine_that_is_lost_between_rounds_leaves_all_slots_free(start_server, tmp_path):
    settings = {"config": write_models(tmp_path), "queue_limit": SLOTS}
    with start_server(**settings) as server, ThreadPoolExecutor(1) as pool:
        server.signal_engine(signal.SIGSTOP)
        sending = pool.submit(httpx.post, f"{server.url}{EAR}", content=sound(6.4), timeout=60)
        eventually(lambda: server.metric("tome_queue_jobs") == SLOTS)
        server.signal_engine(signal.SIGKILL)
        assert_problem(sending.result(), 503, "engine-lost")
        eventually(server.ready, 120)
        # One slot is held by a request whose body has not ended, so that the other is needed.
        with server.connect() as connection:
            connection.sendall(head("/classify?model=tiny", SNEAKER) + SNEAKER[:100])
            eventually(lambda: server.metric("tome_inflight_requests") >= 2)
            response = httpx.post(f"{server.url}{EAR}", content=sound(6.4), timeout=60)
            assert response.status_code == 200
            connection.sendall(SNEAKER[100:])
            assert read_response(connection).status_code == 200
