"""Embeddings for OpenAI's client and Triton's, from a real server, beside those of the core."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

import tome_core
from server.api.contract.openai_schemas import EmbeddingList, OpenAIError, OpenAIModelList
from server.imaging.decode import decode
from server.imaging.small import MAX_SMALL_BYTES
from server.media.transforms import ImageTransform
from tests.server.other_models import SIZE, TOKENS, WIDTH, read_other_model
from tests.server.wire import EXAMPLES, LEAKS, SNEAKER, half_sent, read_response

EMBEDDINGS = "/v1/embeddings"


def large_jpeg() -> bytes:
    """An image that is decoded in a thread, as pictures of cameras are."""
    values = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=95)
    assert file.tell() > MAX_SMALL_BYTES
    return file.getvalue()


def enormous_png() -> bytes:
    """An image of few bytes that has more pixels than the server decodes."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


IMAGES = [large_jpeg(), *(EXAMPLES[name] for name in ("bag", "sneaker", "trouser", "t-shirt-top"))]


def text_of(body: bytes) -> str:
    return base64.b64encode(body).decode()


def url_of(body: bytes) -> str:
    return f"data:image/jpeg;base64,{text_of(body)}"


@pytest.fixture(scope="module")
def client(others_server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{others_server.url}/v1", api_key="none", max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.fixture(scope="module")
def http(others_server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=others_server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def embed(others_folder: Path) -> Callable[..., np.ndarray]:
    """The embeddings (B, D) of the core, from timm's own model and without a server."""

    def features(model: str, r: int, *bodies: bytes) -> np.ndarray:
        vit = read_other_model(others_folder, model)
        config = vit.pretrained_cfg
        transform = ImageTransform(
            (3, *SIZE), config["interpolation"], config["crop_pct"], "center"
        )
        pixels = np.stack([decode(body, transform, 1_000_000, 4000) for body in bodies])
        mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
        with torch.inference_mode():
            images = (torch.from_numpy(pixels) / 255 - mean) / std
            return tome_core.patch(vit).embed(images, r=r).numpy()

    return features


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class TestOpenAI:
    @pytest.mark.parametrize("r", [0, 2])
    def test_embeddings_are_those_of_the_core(self, client, embed, r):
        """Base64 is what the client asks for by itself; it decodes it into numbers."""
        inputs = [url_of(body) for body in IMAGES]
        for extra in ({"extra_body": {"r": r}}, {"extra_query": {"r": r}}):
            answer = client.embeddings.create(model="bare", input=inputs, **extra)
            assert (answer.object, answer.model) == ("list", "bare")
            assert [each.index for each in answer.data] == list(range(len(IMAGES)))
            vectors = np.array([each.embedding for each in answer.data])
            np.testing.assert_allclose(vectors, unit(embed("bare", r, *IMAGES)), atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == TOKENS * len(IMAGES)
            for each in answer.data:
                assert each.tome["r"] == each.tome["r_requested"] == str(r)
                assert each.tome["tokens"] == {"input": TOKENS, "output": TOKENS - 2 * r}
                assert set(each.tome["timing_ms"]) == {"decode", "queue", "forward"}

    def test_base64_is_the_numbers_of_float(self, http):
        rows = []
        for encoding in ("float", "base64"):
            message = {"model": "many", "input": text_of(SNEAKER), "encoding_format": encoding}
            answer = http.post(EMBEDDINGS, json=message)
            EmbeddingList.model_validate_json(answer.content, strict=True)
            (item,) = answer.json()["data"]
            rows.append(item["embedding"])
        decoded = np.frombuffer(base64.b64decode(rows[1]), "<f4")
        assert decoded.tolist() == rows[0]
        assert len(decoded) == WIDTH

    def test_inputs_of_one_request_run_as_one_batch(self, client):
        inputs = [url_of(body) for body in (*IMAGES, IMAGES[0], IMAGES[1], IMAGES[0])]
        answer = client.embeddings.create(model="bare", input=inputs)
        assert [each.tome["batch_size"] for each in answer.data] == [8] * 8
        first, second = answer.data[0].embedding, answer.data[1].embedding
        np.testing.assert_allclose(answer.data[5].embedding, first, atol=1e-6)
        np.testing.assert_allclose(answer.data[6].embedding, second, atol=1e-6)
        assert np.abs(np.subtract(first, second)).max() > 0.01

    def test_inputs_may_be_more_than_the_slots_of_the_server(self, client, embed):
        bodies = [*IMAGES] * 4
        answer = client.embeddings.create(model="bare", input=[url_of(body) for body in bodies])
        vectors = np.array([each.embedding for each in answer.data])
        expected = unit(embed("bare", 0, *IMAGES))
        np.testing.assert_allclose(vectors, np.tile(expected, (4, 1)), atol=1e-6)

    def test_lengths_and_dimensions_are_those_that_are_requested(self, client, embed):
        (expected,) = embed("bare", 0, SNEAKER)
        for options, vector in (
            ({"extra_body": {"normalize": False}}, expected),
            ({"extra_query": {"normalize": "false"}}, expected),
            ({"dimensions": WIDTH}, unit(expected)),
            ({"dimensions": 5}, unit(expected[:5])),
            ({"dimensions": 5, "extra_body": {"normalize": False}}, expected[:5]),
        ):
            answer = client.embeddings.create(
                model="bare", input=url_of(SNEAKER), user="me", **options
            )
            np.testing.assert_allclose(answer.data[0].embedding, vector, atol=1e-6)

    def test_parameters_of_embed_may_stand_in_both_places(self, http):
        message = {"input": [text_of(SNEAKER)], "r": "auto", "deadline_ms": 20_000, "user": None}
        answer = http.post(EMBEDDINGS + "?r_max=0", json=message)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "bare"
        assert answer.json()["data"][0]["tome"]["r_requested"] == "auto"
        assert "forward" in answer.headers["server-timing"]

    def test_models(self, client, http):
        assert [model.id for model in client.models.list()] == ["bare", "many", "plain", "paired"]
        assert client.models.retrieve("plain").owned_by == "tome-serve"
        OpenAIModelList.model_validate_json(http.get("/v1/models").content, strict=True)
        with pytest.raises(openai.NotFoundError, match="there is no model 'x'") as caught:
            client.models.retrieve("x")
        assert caught.value.code == "model_not_found"


# Members of the request, the client's exception, the message, and the wrong member.
WRONG: list[tuple[dict[str, Any], type[openai.APIStatusError], str, str | None]] = [
    ({"input": []}, openai.BadRequestError, "a list of at least one", "input"),
    ({"input": [1, 2]}, openai.BadRequestError, "tokens of a text", "input"),
    ({"input": [[1], [2]]}, openai.BadRequestError, "tokens of a text", "input"),
    ({"input": ["a shoe, red"]}, openai.BadRequestError, "not base64", "input"),
    ({"input": "https://example.org/a.jpg"}, openai.BadRequestError, "fetches no other", "input"),
    ({"input": [url_of(SNEAKER), ""]}, openai.BadRequestError, "input 1: the body is", "input"),
    ({"input": [text_of(b"hello")]}, openai.APIStatusError, "not an image", "input"),
    ({"input": text_of(enormous_png())}, openai.APIStatusError, "pixels", "input"),
    ({"input": [text_of(SNEAKER)] * 65}, openai.APIStatusError, "may have 64", None),
    ({"model": "x"}, openai.NotFoundError, "there is no model 'x'", "model"),
    ({"dimensions": 33}, openai.BadRequestError, "from 1 to 32 for bare", "dimensions"),
    ({"dimensions": 0}, openai.BadRequestError, "from 1 to 32", "dimensions"),
    ({"dimensions": 1.5}, openai.BadRequestError, "a whole number", "dimensions"),
    ({"dimensions": 5, "model": "many"}, openai.BadRequestError, "matryoshka", "dimensions"),
    ({"encoding_format": "int8"}, openai.BadRequestError, "float or base64", "encoding_format"),
    ({"extra_body": {"r": 99}}, openai.BadRequestError, "r=99 is too large", "r"),
    ({"extra_body": {"normalize": 1}}, openai.BadRequestError, "true and false", "normalize"),
    ({"extra_body": {"windows": "mean"}}, openai.BadRequestError, "takes images", "windows"),
    ({"extra_body": {"top_k": 1}}, openai.BadRequestError, "no member 'top_k'", "top_k"),
    (
        {"extra_body": {"r": "auto", "min_fidelity": 0.99}},
        openai.BadRequestError,
        "has no profile of its fidelity",
        "min_fidelity",
    ),
    ({"extra_query": {"speed": 1}}, openai.BadRequestError, "no parameter 'speed'", "speed"),
    ({"extra_body": {"r": 1}, "extra_query": {"r": 1}}, openai.BadRequestError, "2 times", "r"),
    ({"extra_body": {"deadline_ms": 0.01}}, openai.InternalServerError, "deadline passed", None),
]


@pytest.mark.parametrize(("members", "error", "message", "parameter"), WRONG)
def test_wrong_requests_are_refused(client, members, error, message, parameter):
    request = {"model": "bare", "input": [url_of(SNEAKER)], **members}
    with pytest.raises(error, match=message) as caught:
        client.embeddings.create(**request)
    OpenAIError.model_validate_json(caught.value.response.content, strict=True)
    assert caught.value.param == parameter
    assert not LEAKS.search(caught.value.response.text)


def test_a_request_that_would_fail_again_is_not_repeated(others_server):
    """The client repeats a request after a 5xx unless the response says no."""
    sent: list[httpx.Request] = []
    with (
        httpx.Client(event_hooks={"request": [sent.append]}) as http_client,
        openai.OpenAI(
            base_url=f"{others_server.url}/v1", api_key="none", http_client=http_client
        ) as client,
    ):
        assert client.max_retries > 0
        with pytest.raises(openai.InternalServerError, match="deadline passed"):
            client.embeddings.create(
                model="bare", input=url_of(SNEAKER), extra_body={"deadline_ms": 0.01}
            )
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "not valid JSON"),
        (b'{"input": ', 400, "not valid JSON"),
        (b'["input"]', 400, "must be an object"),
        (b"{}", 400, "input must be an image or a list"),
        (b'{"input": "", "input": ""}', 400, "given twice"),
        (b'{"input": "", "model": 3}', 400, "the name of a model"),
        (b"[" * 2000, 413, "too many members"),
    ],
)
def test_wrong_bodies_are_refused(http, content, status, message):
    response = http.post(EMBEDDINGS, content=content)
    assert response.status_code == status
    assert message in OpenAIError.model_validate_json(response.content).error.message


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("speed=1", 400, "no parameter 'speed'"),
        ("r=1&r=1", 400, "2 times"),
        ("model=x", 404, "no model 'x'"),
        ("model=many&r=99", 400, "r=99 is too large"),
        ("deadline_ms=soon", 400, "a positive number"),
        ("normalize=1", 400, "true and false"),
    ],
)
def test_a_wrong_query_is_refused_before_the_body_is_read(others_server, query, status, message):
    with half_sent(others_server, EMBEDDINGS, query) as connection:
        response = read_response(connection)
    assert response.status_code == status
    assert message in OpenAIError.model_validate_json(response.content).error.message


def test_compressed_bodies_are_refused(http):
    headers = {"Content-Encoding": "gzip"}
    response = http.post(EMBEDDINGS, content=gzip.compress(b"{}"), headers=headers)
    assert response.status_code == 415
    error = OpenAIError.model_validate_json(response.content).error
    assert error.message.startswith("compressed bodies are not supported")
    assert error.param is None


def test_other_paths_and_methods_have_errors_of_openai_too(http):
    for response, status in ((http.get("/v1/nothing"), 404), (http.get(EMBEDDINGS), 405)):
        assert response.status_code == status
        OpenAIError.model_validate_json(response.content, strict=True)


@pytest.fixture(scope="module")
def tritons(others_server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{others_server.port}") as client:
        yield client


class TestOpenInferenceProtocol:
    def infer(self, client, model: str, outputs: tuple[str, ...] = (), binary=True, **parameters):
        image = triton.InferInput("image", [len(IMAGES)], "BYTES")
        image.set_data_from_numpy(np.array(IMAGES, np.object_))
        asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in outputs]
        return client.infer(model, [image], outputs=asked or None, parameters=parameters)

    @pytest.mark.parametrize("binary", [True, False])
    def test_the_embedding_is_that_of_the_core(self, tritons, embed, binary):
        result = self.infer(tritons, "many", ("scores", "embedding"), binary, r=2, top_k=3)
        assert result.as_numpy("embedding").dtype == np.float32
        np.testing.assert_allclose(
            result.as_numpy("embedding"), embed("many", 2, *IMAGES), rtol=1e-5, atol=1e-6
        )
        assert result.as_numpy("scores").shape == (len(IMAGES), 3)
        assert result.as_numpy("labels") is None
        alone = self.infer(tritons, "many", ("embedding",), binary, r=2, normalize=True)
        np.testing.assert_allclose(
            alone.as_numpy("embedding"), unit(embed("many", 2, *IMAGES)), atol=1e-6
        )

    def test_classes_beside_it_are_those_without_it(self, tritons):
        scores = [
            self.infer(tritons, "plain", outputs).as_numpy("scores")
            for outputs in ((), ("labels", "scores", "embedding"))
        ]
        np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)

    def test_it_is_the_default_output_of_a_model_without_classes(self, tritons, embed):
        metadata = tritons.get_model_metadata("bare")
        assert metadata["outputs"] == [
            {"name": "embedding", "datatype": "FP32", "shape": [-1, WIDTH]}
        ]
        result = self.infer(tritons, "bare")
        np.testing.assert_allclose(
            result.as_numpy("embedding"), embed("bare", 0, *IMAGES), rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize(
        ("model", "outputs", "parameters", "message"),
        [
            ("bare", ("labels",), {}, "there are embedding"),
            ("many", ("embedding", "embedding"), {}, "unknown or repeated"),
            ("many", ("embedding",), {"top_k": 1}, "no parameter 'top_k'"),
            ("many", ("scores",), {"normalize": True}, "name it in outputs"),
            ("many", ("embedding",), {"normalize": 3}, "allowed are true and false"),
        ],
    )
    def test_what_is_not_there_is_refused(self, tritons, model, outputs, parameters, message):
        with pytest.raises(InferenceServerException, match=message) as caught:
            self.infer(tritons, model, outputs, **parameters)
        assert caught.value.status() in ("400", "422")
