"""The Open Inference Protocol, with Triton's client and a real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from server.catalog.entries import read_catalog
from server.commands.offline import load_runner
from server.engine.execution.runner import Runner
from server.imaging.decode import decode
from server.media.transforms import ImageTransform
from server.settings import ModelSettings
from tests.server.wire import EXAMPLES, SNEAKER

NAME = "fashion-mnist"
NAMES = ["sneaker", "bag", "ankle-boot"]
PNG_NAMES = ["bag", "ankle-boot"]


@pytest.fixture(scope="module")
def client(server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def runner() -> Runner:
    return load_runner(ModelSettings(threads=1), read_catalog(None, ())[0])


def images(*names: str) -> triton.InferInput:
    """Encoded files, as binary data."""
    tensor = triton.InferInput("image", [len(names)], "BYTES")
    return tensor.set_data_from_numpy(np.array([EXAMPLES[name] for name in names], np.object_))


def pixel_values(runner: Runner, *names: str) -> np.ndarray:
    """What timm's transform gives: float32 (n, C, H, W), normalised."""
    model = runner.model
    assert isinstance(model.transform, ImageTransform)
    stacked = np.stack([decode(EXAMPLES[name], model.transform, 1_000_000, 4000) for name in names])
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (model.mean, model.std))
    return ((stacked / np.float32(255) - mean) / std).astype(np.float32)


def floats(values: np.ndarray, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("pixel_values", list(values.shape), "FP32").set_data_from_numpy(
        values, binary
    )


def file_pixels(*names: str) -> np.ndarray:
    """The pixels of PNG files as they are: uint8 (n, 1, H, W)."""
    return np.stack([np.asarray(Image.open(io.BytesIO(EXAMPLES[name])))[None] for name in names])


def unnormalised(values: np.ndarray, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("pixel_values", list(values.shape), "UINT8").set_data_from_numpy(
        values, binary
    )


def classify(http, name: str, **query: object) -> tuple[list[str], list[float]]:
    predictions = http.post("/classify", params=query, content=EXAMPLES[name]).json()["predictions"]
    return [each["label"] for each in predictions], [each["score"] for each in predictions]


class TestMetadata:
    def test_server_metadata(self, client):
        metadata = client.get_server_metadata()
        assert metadata["name"] == "tome-serve"
        assert metadata["extensions"] == ["binary_tensor_data"]

    def test_health(self, client):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        assert client.is_model_ready(NAME, "1")
        assert not client.is_model_ready(NAME, "2")
        assert not client.is_model_ready("resnet")

    @pytest.mark.parametrize("version", ["", "1"])
    def test_model_metadata(self, client, version):
        assert client.get_model_metadata(NAME, version) == {
            "name": NAME,
            "versions": ["1"],
            "platform": "pytorch_timm",
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [-1]},
                {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 1, 28, 28]},
                {"name": "pixel_values", "datatype": "UINT8", "shape": [-1, 1, 28, 28]},
            ],
            "outputs": [
                {"name": "labels", "datatype": "BYTES", "shape": [-1, -1]},
                {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
                {"name": "embedding", "datatype": "FP32", "shape": [-1, 128]},
            ],
        }


class TestInfer:
    @pytest.mark.parametrize("r", [0, 16, "16", "16:-1", "30,0,5"])
    def test_images_get_the_results_of_classify(self, client, server, r):
        result = client.infer(
            NAME, [images(*NAMES)], request_id="mine", parameters={"r": r, "top_k": 3}
        )
        labels = result.as_numpy("labels")
        scores = result.as_numpy("scores")
        assert (labels.shape, scores.shape, scores.dtype) == ((3, 3), (3, 3), np.float32)
        with httpx.Client(base_url=server.url) as http:
            for row, name in enumerate(NAMES):
                expected = classify(http, name, r=r, top_k=3)
                assert labels[row, 0].decode() == expected[0][0]
                np.testing.assert_allclose(scores[row, 0], expected[1][0], atol=0.02)
        response = result.get_response()
        assert (response["model_name"], response["model_version"], response["id"]) == (
            NAME,
            "1",
            "mine",
        )
        assert response["parameters"] == {"r": str(r), "r_requested": str(r)}

    @pytest.mark.parametrize("binary_in", [True, False])
    @pytest.mark.parametrize("r", ["0", "16"])
    def test_pixel_values_get_the_results_of_images(self, client, runner, r, binary_in):
        """Pixel values reach the model as they are; the device normalises those of files."""
        parameters = {"r": r}
        values = pixel_values(runner, *NAMES)
        result = client.infer(NAME, [floats(values, binary_in)], parameters=parameters)
        expected = client.infer(NAME, [images(*NAMES)], parameters=parameters)
        for row in range(len(values)):
            assert result.as_numpy("labels")[row, 0] == expected.as_numpy("labels")[row, 0]
            np.testing.assert_allclose(
                result.as_numpy("scores")[row, 0], expected.as_numpy("scores")[row, 0], atol=0.02
            )

    @pytest.mark.parametrize("binary_in", [True, False])
    @pytest.mark.parametrize("r", ["0", "16"])
    def test_pixels_of_files_of_the_input_size_get_the_results_of_the_files(
        self, client, runner, r, binary_in
    ):
        """No resize happens to a file of the model's own size, so its pixels are its input."""
        pixels = file_pixels(*PNG_NAMES)
        assert pixels.shape[1:] == runner.model.transform.size
        normalised = (pixels / 255 - runner.model.mean[0]) / runner.model.std[0]
        sent = (
            unnormalised(pixels, binary_in),
            images(*PNG_NAMES),
            floats(normalised.astype(np.float32)),
        )
        results = [client.infer(NAME, [tensor], parameters={"r": r}) for tensor in sent]
        labels, file_labels, _ = (result.as_numpy("labels").tolist() for result in results)
        scores, file_scores, float_scores = (result.as_numpy("scores") for result in results)
        assert labels == file_labels
        np.testing.assert_allclose(scores, file_scores, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scores, float_scores, rtol=0.02, atol=1e-4)

    @pytest.mark.parametrize("binary_out", [True, False])
    def test_outputs_are_those_that_are_requested(self, client, binary_out):
        outputs = [
            triton.InferRequestedOutput(name, binary_data=binary_out)
            for name in ("scores", "labels")
        ]
        result = client.infer(NAME, [images("bag")], outputs=outputs)
        described = result.get_response()["outputs"]
        assert [output["name"] for output in described] == ["scores", "labels"]
        assert [("data" in output) for output in described] == [not binary_out] * 2
        label = result.as_numpy("labels")[0, 0]
        assert (label.decode() if binary_out else label) == "Bag"
        assert result.as_numpy("scores")[0, 0] > 0.5
        only = client.infer(NAME, [images("bag")], outputs=[triton.InferRequestedOutput("labels")])
        assert [output["name"] for output in only.get_response()["outputs"]] == ["labels"]
        assert only.as_numpy("scores") is None

    def test_one_output_binary_and_one_in_json(self, client):
        outputs = [
            triton.InferRequestedOutput("labels", binary_data=False),
            triton.InferRequestedOutput("scores", binary_data=True),
        ]
        result = client.infer(NAME, [images("bag", "sneaker")], outputs=outputs, model_version="1")
        assert result.as_numpy("labels")[:, 0].tolist() == ["Bag", "Sneaker"]
        assert result.as_numpy("scores").shape == (2, 5)

    def test_images_in_json_are_base64(self, client):
        text = np.array([base64.b64encode(SNEAKER)], np.object_)
        image = triton.InferInput("image", [1], "BYTES").set_data_from_numpy(
            text, binary_data=False
        )
        assert client.infer(NAME, [image]).as_numpy("labels")[0, 0] == b"Sneaker"

    def test_concurrent_requests_share_batches(self, client, runner):
        values = pixel_values(runner, *NAMES)
        pending = [
            client.async_infer(
                NAME, [images(*NAMES) if index % 2 else floats(values)], parameters={"r": index % 3}
            )
            for index in range(12)
        ]
        for each in pending:
            labels = each.get_result().as_numpy("labels")[:, 0]
            assert labels.tolist() == [b"Sneaker", b"Bag", b"Ankle boot"]


class TestErrors:
    @pytest.mark.parametrize(
        ("parameters", "status", "message"),
        [
            ({"r": 99}, "422", "allowed are 0 to 98"),
            ({"r": "x"}, "422", "not a schedule"),
            ({"r": 1.5}, "422", "not a schedule"),
            ({"r": True}, "422", "r must be a number or a string"),
            ({"top_k": 11}, "422", "allowed are 1 to 10"),
            ({"deadline_ms": 0}, "422", "deadline_ms='0' is not allowed"),
            ({"deadline_ms": 0.01}, "504", "the deadline passed"),
            ({"speed": 3}, "422", "there is no parameter 'speed'"),
            ({"model": "other"}, "422", "the model is named in the path"),
        ],
    )
    def test_parameters_that_are_not_allowed(self, client, parameters, status, message):
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.infer(NAME, [images("bag")], parameters=parameters)
        assert caught.value.status() == status

    @pytest.mark.parametrize(("model", "version"), [("resnet", ""), (NAME, "2")])
    def test_unknown_models_and_versions(self, client, model, version):
        for send in (
            lambda: client.infer(model, [images("bag")], version),
            lambda: client.get_model_metadata(model, version),
        ):
            with pytest.raises(InferenceServerException, match="there is no") as caught:
                send()
            assert caught.value.status() == "404"

    def test_an_image_that_cannot_be_read_fails_the_request(self, client, server, eventually):
        for content, status in ((b"hello", "415"), (SNEAKER[:300], "400"), (b"", "400")):
            data = np.array([SNEAKER, content, SNEAKER], np.object_)
            image = triton.InferInput("image", [3], "BYTES").set_data_from_numpy(data)
            with pytest.raises(InferenceServerException, match="image 1: ") as caught:
                client.infer(NAME, [image])
            assert caught.value.status() == status
        eventually(lambda: server.metric("tome_queue_jobs") == 0)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_pixel_values_must_be_finite(self, client, runner, bad):
        values = pixel_values(runner, "bag", "sneaker")
        values[1, 0, 5, 5] = bad
        with pytest.raises(InferenceServerException, match="NaN, an infinity") as caught:
            client.infer(NAME, [floats(values)])
        assert caught.value.status() == "400"

    @pytest.mark.parametrize("r", ["0", "16"])
    def test_absurd_pixel_values_fail_no_other_image(self, client, runner, r):
        """Pixels that are finite in float32 may overflow in the model, for their image alone."""
        good = pixel_values(runner, *NAMES)
        absurd = [
            client.async_infer(NAME, [floats(np.full_like(good[:1], size))], parameters={"r": r})
            for size in (3e38, -3e38, 1e30, 1e15)
        ]
        fine = [client.async_infer(NAME, [floats(good)], parameters={"r": r}) for _ in range(4)]
        for each in absurd:
            try:
                assert np.isfinite(each.get_result().as_numpy("scores")).all()
            except InferenceServerException as error:
                assert error.status() == "500"
        for each in fine:
            assert each.get_result().as_numpy("labels")[:, 0].tolist() == [
                b"Sneaker",
                b"Bag",
                b"Ankle boot",
            ]

    def test_inputs_that_the_model_does_not_take(self, client, runner):
        values = pixel_values(runner, "bag")
        pixels = file_pixels("bag")
        double = triton.InferInput("pixel_values", [1, 1, 28, 28], "FP64").set_data_from_numpy(
            values.astype(float)
        )
        other = triton.InferInput("pixels", [1, 1, 28, 28], "FP32").set_data_from_numpy(values)
        for inputs, message in (
            ([double], "pixel_values must be FP32 or UINT8, not FP64"),
            ([other], "there is no input 'pixels'"),
            ([floats(values[:, :, :20])], r"must be \[n, 1, 28, 28\]"),
            ([unnormalised(pixels[:, :, :20])], r"must be \[n, 1, 28, 28\]"),
            ([floats(values), images("bag")], "there must be one input"),
        ):
            with pytest.raises(InferenceServerException, match=message) as caught:
                client.infer(NAME, inputs)
            assert caught.value.status() == "400"

    def test_extensions_of_triton(self, client):
        assert client.infer(NAME, [images("bag")], timeout=20_000_000).as_numpy("labels").size == 5
        with pytest.raises(InferenceServerException, match="the deadline passed") as caught:
            client.infer(NAME, [images("bag")], timeout=10)
        assert caught.value.status() == "504"
        classes = triton.InferRequestedOutput("scores", class_count=3)
        for options, name in (
            ({"outputs": [classes]}, "classification extension"),
            ({"priority": 1}, "priority"),
            ({"sequence_id": 5, "sequence_start": True}, "sequence_id"),
        ):
            with pytest.raises(InferenceServerException, match=f"Triton's {name} is not supported"):
                client.infer(NAME, [images("bag")], **options)

    def test_compressed_bodies_are_refused(self, client):
        with pytest.raises(InferenceServerException, match="compressed") as caught:
            client.infer(NAME, [images("bag")], request_compression_algorithm="gzip")
        assert caught.value.status() == "415"
