"""A real server of tiny models of images, sound and video: answers, refusals, all at once."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch

from tests.server import tiny_ear
from tests.server.conftest import RunningServer, eventually
from tests.server.test_sounds_over_http import (
    assert_documented,
    assert_pictures_stack,
    assert_statuses,
    continue_decoders,
    head,
    lost,
    scores,
    stop_decoders,
)
from tests.server.tiny_clip import FRAMES, LABELS, SIDE, TOKENS, create_clip, video
from tests.server.wire import EXAMPLES, SNEAKER, assert_problem, read_response

pytest.importorskip("av")
pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from server.media.limits import VideoLimits
from server.media.transforms import VideoTransform
from server.video.front_end import prepare
from tests.hostile.videos import hostile_videos

CLIP = "/classify?model=clip"
TRANSFORM = VideoTransform(FRAMES, 2, SIDE, SIDE, SIDE, stride=2)


@pytest.fixture(scope="module")
def client(clip_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=clip_server.url, timeout=60) as client:
        yield client


def normalised(body: bytes) -> torch.Tensor:
    """The input ``(1, C, T*H, W)`` of the model."""
    pixels = prepare(body, TRANSFORM, VideoLimits()).inputs
    return (torch.from_numpy(pixels) / 255 - 0.5) / 0.25


class TestAnswers:
    def test_a_video_is_answered_as_a_sound_is(self, client):
        answer = client.post(f"{CLIP}&top_k=2&r=4", content=video(20)).json()
        assert list(answer) == [
            "model", "r", "r_requested", "merging", "predictions", "tokens", "timing_ms",
            "batch_size",
            "modality", "media",
        ]  # fmt: skip
        assert (answer["model"], answer["r"], answer["modality"]) == ("clip", "4", "video")
        assert answer["media"] == {
            "seconds": 2.0, "frames": 20, "frame_rate": 10.0, "width": 64, "height": 48,
            "codec": "mpeg4",
        }  # fmt: skip
        assert answer["tokens"] == {"input": TOKENS, "output": TOKENS - 8}
        assert {each["label"] for each in answer["predictions"]} <= set(LABELS)

    def test_without_merging_it_is_the_answer_of_the_model_alone(self, client):
        body = video(30, seed=1)
        with torch.no_grad():
            expected = create_clip()(normalised(body)).softmax(-1)[0]
        answer = client.post(CLIP, content=body).json()
        assert scores(answer) == pytest.approx(expected.tolist(), abs=1e-5)

    def test_each_crop_of_each_clip_is_answered_and_the_mean_is_theirs(self, client):
        body = video(40, seed=2)
        path = f"{CLIP}&clips=2&crops=3"
        answer = client.post(f"{path}&windows=each", content=body).json()
        windows = answer["windows"]
        assert [window["crop"] for window in windows] == [0, 1, 2] * 2
        starts = [window["start"] for window in windows]
        assert starts == sorted(starts)
        assert len(set(starts)) == 2
        assert all(window["start"] < window["end"] <= 4 for window in windows)
        mean = np.mean([scores(window) for window in windows], axis=0)
        assert scores(answer) == pytest.approx(mean, abs=1e-6)
        assert scores(client.post(path, content=body).json()) == pytest.approx(mean, abs=1e-5)
        first = client.post(f"{path}&windows=first", content=body).json()
        assert scores(first) == pytest.approx(scores(windows[0]), abs=1e-5)

    def test_features_are_a_mean_or_rows(self, client):
        body = video(40)
        path = "/embed?model=clip&clips=2&windows=each"
        each = client.post(path, content=body).json()
        rows = np.array([window["embedding"] for window in each["windows"]])
        assert np.allclose(each["embedding"], rows.mean(axis=0), atol=1e-6)
        raw = {"Accept": "application/octet-stream"}
        answer = client.post(path, content=body, headers=raw)
        assert np.allclose(np.frombuffer(answer.content, "<f4").reshape(2, -1), rows, atol=1e-5)

    def test_a_picture_has_the_first_window_or_all(self, client):
        assert_pictures_stack(client, "/visualize?model=clip&clips=2", video(40))

    def test_the_scheduler_may_choose_r(self, client):
        answer = client.post(f"{CLIP}&r=auto&clips=3&windows=each", content=video(40)).json()
        assert answer["r_requested"] == "auto"
        assert answer["r"] in {window["r"] for window in answer["windows"]}

    def test_files_and_base64_are_answered_each_in_its_place(self, client):
        body = video(20)
        files = [("a", ("a.mp4", body)), ("b", ("b.txt", b"text"))]
        good, bad = client.post(CLIP, files=files).json()["results"]
        assert (good["modality"], bad["status"]) == ("video", 415)
        text = base64.b64encode(body).decode()
        assert scores(client.post(CLIP, json={"video": text}).json()) == scores(good)
        (listed,) = client.post(CLIP, json={"videos": [text]}).json()["results"]
        assert scores(listed) == scores(good)
        untyped = b"--XX\r\nContent-Type: video/mp4\r\n\r\n" + body + b"\r\n--XX--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=XX"}
        (listed,) = client.post(CLIP, content=untyped, headers=headers).json()["results"]
        assert scores(listed) == scores(good)

    def test_the_models_say_what_they_take(self, client):
        clip = client.get("/models").json()["models"][-1]
        assert (clip["modality"], clip["input_size"]) == ("video", [3, FRAMES * SIDE, SIDE])
        assert (clip["frames"], clip["sampling"], clip["stride"]) == (FRAMES, "stride", 2)
        assert (clip["clips"], clip["crops"], clip["max_windows"]) == (1, 1, 16)
        assert clip["max_seconds"] == 300

    @pytest.mark.parametrize(
        ("path", "schema"),
        [
            (CLIP, "VideoAnswer"),
            (f"{CLIP}&windows=each", "VideoAnswerByWindow"),
            ("/embed?model=clip", "VideoEmbedding"),
            ("/embed?model=clip&windows=each", "VideoEmbeddingByWindow"),
        ],
    )
    def test_answers_are_those_that_are_documented(self, client, path, schema):
        window = "VideoWindow" + schema.removeprefix("Video").removesuffix("ByWindow")
        assert_documented(client, path, video(20), (schema, "VideoMedia", window))


class TestProtocol:
    PATH = "/v2/models/clip/infer"
    SHAPE = (FRAMES, 3, SIDE, SIDE)

    def test_the_model_has_an_input_of_video(self, client):
        inputs = client.get("/v2/models/clip").json()["inputs"]
        assert inputs == [
            {"name": "video", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixel_values", "datatype": "FP32", "shape": [-1, *self.SHAPE]},
            {"name": "pixel_values", "datatype": "UINT8", "shape": [-1, *self.SHAPE]},
        ]

    def infer(self, client: httpx.Client, tensor: dict, **parameters: object) -> httpx.Response:
        return client.post(self.PATH, json={"inputs": [tensor], "parameters": parameters})

    def test_videos_and_inputs_of_the_model_are_answered_alike(self, client):
        body = video(30, seed=3)
        text = base64.b64encode(body).decode()
        tensor = {"name": "video", "datatype": "BYTES", "shape": [2], "data": [text, text]}
        answer = self.infer(client, tensor, top_k=1, r=3).json()
        labels, values = (output["data"] for output in answer["outputs"])
        expected = client.post(f"{CLIP}&r=3", content=body).json()["predictions"][0]
        assert labels == [expected["label"]] * 2
        assert values == pytest.approx([expected["score"]] * 2, abs=1e-5)

        frames = normalised(body).reshape(1, 3, FRAMES, SIDE, SIDE).swapaxes(1, 2)
        shape = [1, *self.SHAPE]
        tensor = {"name": "pixel_values", "datatype": "FP32", "shape": shape}
        answer = self.infer(client, {**tensor, "data": frames.ravel().tolist()}, top_k=1, r=3)
        assert answer.json()["outputs"][1]["data"] == pytest.approx([expected["score"]], abs=1e-4)

    def test_frames_that_are_not_normalised_are_answered_as_their_video(self, client):
        body = video(30, seed=3)
        frames = prepare(body, TRANSFORM, VideoLimits()).inputs
        clips = frames.reshape(1, 3, FRAMES, SIDE, SIDE).swapaxes(1, 2)
        tensor = {"name": "pixel_values", "datatype": "UINT8", "shape": [1, *self.SHAPE]}
        answer = self.infer(client, {**tensor, "data": clips.ravel().tolist()}, top_k=1, r=3)
        expected = client.post(f"{CLIP}&r=3", content=body).json()["predictions"][0]
        labels, values = (output["data"] for output in answer.json()["outputs"])
        assert labels == [expected["label"]]
        assert values == pytest.approx([expected["score"]], abs=1e-5)

    def test_clips_and_crops_are_parameters(self, client):
        body = video(40, seed=4)
        text = base64.b64encode(body).decode()
        tensor = {"name": "video", "datatype": "BYTES", "shape": [1], "data": [text]}
        answer = self.infer(client, tensor, top_k=1, clips=2, crops=3).json()
        expected = client.post(f"{CLIP}&clips=2&crops=3", content=body).json()["predictions"][0]
        assert answer["outputs"][1]["data"] == pytest.approx([expected["score"]], abs=1e-5)
        assert self.infer(client, tensor, clips=6, crops=3).status_code == 422
        assert self.infer(client, tensor, windows="each").status_code == 422

    def test_other_shapes_are_refused(self, client):
        tensor = {"name": "pixel_values", "datatype": "FP32", "shape": [1, 3, FRAMES * SIDE, SIDE]}
        answer = self.infer(client, {**tensor, "data": []})
        assert answer.status_code == 400
        assert f"[n, {FRAMES}, 3, {SIDE}, {SIDE}]" in answer.json()["error"]


def send_head(server: RunningServer, query: str, content_length: int) -> httpx.Response:
    """Announce a body for ``/classify`` and send none; return the answer."""
    with server.connect() as connection:
        header = f"POST /classify?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {content_length}"
        connection.sendall(f"{header}\r\n\r\n".encode())
        return read_response(connection)


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "body", "text"),
        [
            ("clip", SNEAKER, "an image (JPEG); clip takes videos: allowed are MP4"),
            ("clip", tiny_ear.sound(1), "a sound (WAV); clip takes videos: allowed are MP4"),
            ("tiny", None, "a video (MP4); tiny takes images: allowed are JPEG"),
            ("ear", None, "a video (MP4); ear takes sounds: allowed are WAV"),
        ],
    )
    def test_a_body_of_another_modality_is_named(self, client, model, body, text):
        response = client.post(f"/classify?model={model}", content=body or video(20))
        assert text in assert_problem(response, 415, "unsupported-format")["detail"]

    def test_a_body_has_the_limit_of_its_modality(self, clip_server):
        limit = 64_000_000
        response = send_head(clip_server, "model=clip", content_length=limit + 1)
        assert assert_problem(response, 413, "too-large")["limit"] == limit

    def test_every_hostile_video_gets_its_status(self, client):
        assert_statuses(client, CLIP, hostile_videos())

    @pytest.mark.parametrize(
        ("query", "parameter"),
        [
            ("model=tiny&clips=2", "clips"),
            ("model=ear&crops=3", "crops"),
            ("model=clip&clips=17", "clips"),
            ("model=clip&clips=6&crops=3", "clips"),
        ],
    )
    def test_parameters_are_checked_before_the_body(self, clip_server, query, parameter):
        response = send_head(clip_server, query, content_length=9)
        problem = assert_problem(response, 422, "invalid-parameter")
        assert problem["parameter"] == parameter


def test_images_sounds_and_videos_of_any_r_are_answered_at_once(client):
    requests = [
        ("/classify?model=tiny&r=1", SNEAKER),
        ("/classify?model=ear&windows=each&r=2", tiny_ear.sound(3.2)),
        (f"{CLIP}&clips=3&windows=each&r=0", video(40, seed=5)),
        (f"{CLIP}&crops=3&r=9", video(40, seed=6)),
        (f"{CLIP}&r=13:-1", video(40, seed=7)),
    ]
    expected = [client.post(path, content=body).json() for path, body in requests]

    def send(number: int) -> httpx.Response:
        path, body = requests[number % len(requests)]
        return client.post(path, content=body)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(40)))
    for number, response in enumerate(answers):
        assert response.status_code == 200, response.text
        answer, alone = response.json(), expected[number % len(requests)]
        assert (answer["model"], answer["r"]) == (alone["model"], alone["r"])
        assert scores(answer) == pytest.approx(scores(alone), abs=1e-4)


def test_a_client_that_disconnects_costs_a_worker_and_nobody_else(clip_server, client):
    before = lost(clip_server, "cancelled")
    stop_decoders(clip_server)
    try:
        body = video(20)
        with clip_server.connect() as connection:
            connection.sendall(head(CLIP, body) + body)
            # One of them is the scrape itself.
            eventually(lambda: clip_server.metric("tome_inflight_requests") >= 2)
        eventually(lambda: lost(clip_server, "cancelled") > before)
    finally:
        continue_decoders(clip_server)
    for path, content in [
        (CLIP, body),
        ("/classify?model=ear", tiny_ear.sound(1)),
        ("/classify?model=tiny", EXAMPLES["bag"]),
    ]:
        assert client.post(path, content=content).status_code == 200
