"""Images in JSON, on a real server with the bundled model."""

from __future__ import annotations

import base64
import json

import pytest

from tests.server.wire import EXAMPLES, SNEAKER, assert_problem

JSON = {"Content-Type": "application/json"}


def text_of(body: bytes) -> str:
    return base64.b64encode(body).decode()


@pytest.mark.parametrize("name", ["sneaker", "bag"])
def test_one_image_is_answered_as_a_raw_body_is(client, name):
    alone = client.post("/classify?r=16&top_k=2", content=EXAMPLES[name]).json()
    text = text_of(EXAMPLES[name])
    for form in (
        text,
        f"data:image/png;base64,{text}",
        text.rstrip("="),
        f"{text[:60]}\n{text[60:]}",
    ):
        response = client.post("/classify?r=16&top_k=2", json={"image": form})
        assert response.status_code == 200, response.text
        answer = response.json()
        assert set(answer) == set(alone)
        assert answer["tokens"] == alone["tokens"]
        assert answer["predictions"][0]["label"] == alone["predictions"][0]["label"]
        assert len(answer["predictions"]) == 2


def test_several_images_are_answered_as_multipart_is(client):
    texts = [text_of(SNEAKER), text_of(b"hello"), "https://example.org/a.png", "", text_of(SNEAKER)]
    results = client.post("/classify", json={"images": texts}).json()["results"]
    assert [result.get("status", 200) for result in results] == [200, 415, 400, 400, 200]
    assert "fetches no other URL" in results[2]["detail"]
    assert results[4]["predictions"][0]["label"] == "Sneaker"
    assert len(client.post("/embed", json={"images": texts[:1]}).json()["results"]) == 1


def test_features_and_a_picture_of_an_image_in_json(client):
    message = {"image": text_of(SNEAKER)}
    features = client.post("/embed", json=message).json()["embedding"]
    raw = client.post("/embed", json=message, headers={"Accept": "application/octet-stream"})
    assert len(raw.content) == 4 * len(features)
    assert client.post("/visualize", json=message).content.startswith(b"\x89PNG")
    two = client.post("/visualize", json={"images": [message["image"]] * 2})
    assert "takes one" in assert_problem(two, 400, "bad-image")["detail"]


def test_type_and_content_decide_together_whether_a_body_is_json(client):
    assert client.post("/classify", content=SNEAKER, headers=JSON).status_code == 200
    message = json.dumps({"image": text_of(SNEAKER)})
    problem = assert_problem(client.post("/classify", content=message), 415, "unsupported-format")
    assert "application/json" in problem["detail"]


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        (b'{"image": ', 400, "bad-request"),
        (b'{"image": "..."}', 400, "bad-image"),
        (b'{"image": 3}', 422, "invalid-parameter"),
        (b'{"image": "", "r": 16}', 422, "invalid-parameter"),
        (b"{}", 422, "invalid-parameter"),
        (b'{"image": "' + b"A" * 300_000 + b'"}', 413, "too-large"),
        (b'{"images": [' + b'"",' * 64 + b'""]}', 413, "too-large"),
    ],
)
def test_wrong_json_is_refused(client, content, status, slug):
    assert_problem(client.post("/classify", content=content, headers=JSON), status, slug)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/classify", {"image": "a", "\ud800": 1}, 422),
        ("/v1/embeddings", {"input": "a", "\ud800": 1}, 400),
        ("/v1/embeddings", {"input": "a", "model": "\ud800"}, 404),
        ("/v2/models/fashion-mnist/infer", {"parameters": {"\ud800": 1}}, 422),
        (
            "/v2/models/fashion-mnist/infer",
            {"inputs": [{"name": "image", "datatype": "\ud800", "shape": [1], "data": [""]}]},
            400,
        ),
    ],
)
def test_half_a_surrogate_pair_is_named_in_the_error(client, path, body, status):
    """JSON can hold it, and UTF-8, in which errors are written, cannot."""
    response = client.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code == status, response.text
    assert r"\ud800" in response.text.replace("\\\\", "\\")
