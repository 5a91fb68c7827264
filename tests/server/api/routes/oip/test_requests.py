"""Inference requests: what is parsed from them, and how malformed ones are refused."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.api.routes.oip.requests import (
    MAX_JSON_BYTES,
    InferRequest,
    RequestedOutput,
    as_input,
    parse_infer_request,
)
from server.errors import BadRequest, InvalidParameter, RequestError, TooLarge
from server.ipc.messages import ModelInfo
from server.media.transforms import AudioTransform, ImageTransform, VideoTransform

MODEL = ModelInfo(
    name="tiny",
    architecture="vit",
    transform=ImageTransform((3, 2, 2), "bicubic", 1.0, "center"),
    labels=("cat", "dog", "fish"),
    tokens=17,
    prefix=1,
    depth=2,
    device="cpu",
    dtype="float32",
    levels=(),
    grid=(4, 4),
)
PIXELS = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 7
FLOATS = {"name": "pixel_values", "datatype": "FP32", "shape": [2, 3, 2, 2]}
PIXEL_BYTES = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2) * 11
BYTES = {**FLOATS, "datatype": "UINT8"}
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [2]}
TEXTS = [base64.b64encode(text).decode() for text in (b"one", b"\xff\x00")]


def parse(message: Any, binary_data: bytes = b"", header: str | None = "") -> InferRequest:
    """Parse ``message``, followed by ``binary_data``.

    Args:
        header: the value of the header; None for no header, empty for the right value.
    """
    encoded = message if isinstance(message, bytes) else json.dumps(message).encode()
    size = str(len(encoded)) if header == "" else header
    return parse_infer_request(encoded + binary_data, size, MODEL, "0", 0.0)


def with_input(tensor: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"inputs": [{**tensor, **members}]}


def in_binary(tensor: dict[str, Any], size: Any) -> dict[str, Any]:
    """A message whose input is ``size`` bytes of binary data."""
    return with_input(tensor, parameters={"binary_data_size": size})


class TestInputs:
    @pytest.mark.parametrize(
        "data", [PIXELS.tolist(), PIXELS.ravel().tolist(), PIXELS.reshape(4, 6).tolist()]
    )
    def test_pixel_values_in_json_are_flat_or_nested(self, data):
        images = parse(with_input(FLOATS, data=data)).images
        np.testing.assert_array_equal([np.asarray(image) for image in images], PIXELS)
        assert {np.asarray(image).dtype for image in images} == {np.dtype(np.float32)}

    def test_pixel_values_as_binary_data(self):
        images = parse(in_binary(FLOATS, 96), PIXELS.astype("<f4").tobytes()).images
        np.testing.assert_array_equal([np.asarray(image) for image in images], PIXELS)

    def test_pixel_values_that_are_not_normalised(self):
        binary = parse(in_binary(BYTES, 24), PIXEL_BYTES.tobytes()).images
        in_json = parse(with_input(BYTES, data=PIXEL_BYTES.tolist())).images
        for images in (binary, in_json):
            np.testing.assert_array_equal([np.asarray(image) for image in images], PIXEL_BYTES)
            assert {np.asarray(image).dtype for image in images} == {np.dtype(np.uint8)}

    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_frames_of_a_clip_lie_below_each_other_in_each_channel(self, dtype):
        transform = VideoTransform(frames=2, tubelet=2, height=2, width=2, resize=2)
        model = replace(MODEL, transform=transform)
        clip = np.arange(24, dtype=dtype).reshape(2, 3, 2, 2)
        picture = np.concatenate([clip[0], clip[1]], axis=1)
        viewed = as_input(clip, model)
        assert np.shares_memory(viewed, clip)
        np.testing.assert_array_equal(viewed.reshape(transform.size), picture)

    def test_sound_is_normalised_by_the_client(self):
        transform = AudioTransform(frames=4, mean=0.0, std=1.0, time_last=False, subtract_mean=True)
        model = replace(MODEL, transform=transform)
        body = json.dumps(with_input({**BYTES, "shape": [1, 1, 4, 128]}, data=[0] * 512)).encode()
        with pytest.raises(BadRequest, match="pixel_values must be FP32, not UINT8"):
            parse_infer_request(body, None, model, "0", 0.0)

    def test_images_in_json_and_as_binary_data(self):
        assert parse(with_input(IMAGE, data=TEXTS), header=None).images == [b"one", b"\xff\x00"]
        base64_named = with_input(IMAGE, data=TEXTS, parameters={"content_type": "base64"})
        assert parse(base64_named).images == [b"one", b"\xff\x00"]
        binary_data = b"\3\0\0\0one\2\0\0\0\xff\0"
        message = in_binary(IMAGE, len(binary_data))
        assert parse(message, binary_data).images == [b"one", b"\xff\x00"]


class TestParametersAndOutputs:
    @pytest.mark.parametrize(
        ("given_r", "used"), [(3, "3"), (3.0, "3"), ("3", "3"), ("3:-1", "3:-1"), ("8,2", "8,2")]
    )
    def test_r_is_a_number_or_a_string(self, given_r, used):
        params = parse({**with_input(IMAGE, data=TEXTS), "parameters": {"r": given_r}}).params
        assert (params.text, params.top_k, params.deadline) == (used, 3, None)

    def test_id_top_k_and_deadline(self):
        request = parse(
            {
                **with_input(IMAGE, data=TEXTS),
                "id": "7",
                "parameters": {"top_k": 2, "deadline_ms": 1500.5},
            }
        )
        assert (request.id, request.params.top_k, request.params.deadline) == ("7", 2, 1.5005)

    def test_an_output_overrides_the_default_of_the_request(self):
        message = with_input(IMAGE, data=TEXTS)
        assert parse(message).outputs == (
            RequestedOutput("labels", False),
            RequestedOutput("scores", False),
        )
        all_binary = {**message, "parameters": {"binary_data_output": True}}
        assert parse(all_binary).outputs == (
            RequestedOutput("labels", True),
            RequestedOutput("scores", True),
        )
        one = {**all_binary, "outputs": [{"name": "scores", "parameters": {"binary_data": False}}]}
        assert parse(one).outputs == (RequestedOutput("scores", False),)


class TestAbsent:
    """Null is as good as nothing for whatever is optional."""

    def test_null_members_of_a_request_and_of_its_tensors(self):
        message = {
            "id": None,
            "parameters": None,
            "outputs": None,
            "inputs": [{**IMAGE, "data": TEXTS, "parameters": None}],
        }
        assert parse(message) == parse(with_input(IMAGE, data=TEXTS))
        outputs = [{"name": "scores", "parameters": None}]
        assert parse({**message, "outputs": outputs}).outputs == (RequestedOutput("scores", False),)

    def test_null_parameters_of_a_request_and_of_its_tensors(self):
        request = dict.fromkeys(["r", "top_k", "deadline_ms", "binary_data_output"])
        triton = dict.fromkeys(["timeout", "priority", "sequence_id", "sequence_start"])
        tensor = dict.fromkeys(["binary_data_size", "content_type"])
        message = {
            "parameters": request | triton,
            "inputs": [{**IMAGE, "data": TEXTS, "parameters": tensor}],
            "outputs": [{"name": "labels", "parameters": {"binary_data": None}}],
        }
        parsed = parse(message)
        assert parsed.params == parse(with_input(IMAGE, data=TEXTS)).params
        assert parsed.outputs == (RequestedOutput("labels", False),)

    def test_null_data_beside_binary_data(self):
        message = with_input(IMAGE, data=None, parameters={"binary_data_size": 11})
        assert parse(message, b"\3\0\0\0one\0\0\0\0").images == [b"one", b""]


def test_images_in_json_are_base64_of_every_common_form():
    data = ["data:image/png;base64,b25l", "_wA"]
    assert parse(with_input(IMAGE, data=data)).images == [b"one", b"\xff\x00"]
    assert parse(with_input(IMAGE, data=["b2\r\n5l", "/wA=\n"])).images == [b"one", b"\xff\x00"]


CLASSIFICATION = {"name": "scores", "parameters": {"classification": 2}}
REFUSED: list[tuple[Any, bytes, type[RequestError], str]] = [
    (b"{", b"", BadRequest, "not JSON"),
    (b"[" * 100_000, b"", BadRequest, "not JSON"),
    (b'{"id": ' + b"9" * 9000 + b"}", b"", BadRequest, "not JSON"),
    (b"\xff", b"", BadRequest, "not JSON"),
    (b"[]", b"", BadRequest, "must be an object"),
    (b" " * (MAX_JSON_BYTES + 1), b"", TooLarge, "binary data"),
    ({}, b"", BadRequest, "inputs is required, as a list"),
    ({"inputs": []}, b"", BadRequest, "one input"),
    ({"inputs": [3]}, b"", BadRequest, "must be JSON objects"),
    ({"inputs": [{}]}, b"", BadRequest, "name is required, as a string"),
    (with_input({**IMAGE, "name": "x"}, data=TEXTS), b"", BadRequest, "no input 'x'"),
    (
        with_input({**IMAGE, "datatype": "FP32"}, data=TEXTS),
        b"",
        BadRequest,
        "image must be BYTES, not FP32",
    ),
    (with_input({**IMAGE, "shape": [2, 1]}, data=TEXTS), b"", BadRequest, r"must be \[n\]"),
    (with_input({**IMAGE, "shape": [0]}, data=[]), b"", BadRequest, "at least 1"),
    (with_input({**IMAGE, "shape": [True]}, data=TEXTS), b"", BadRequest, "at least 1"),
    (with_input({**IMAGE, "shape": [2.0]}, data=TEXTS), b"", BadRequest, "at least 1"),
    (with_input({**IMAGE, "shape": [65]}, data=TEXTS), b"", TooLarge, "may have 64"),
    (
        with_input({**IMAGE, "shape": [3]}, data=TEXTS),
        b"",
        BadRequest,
        "3 elements, but there are 2",
    ),
    (with_input(IMAGE), b"", BadRequest, "data is required"),
    (with_input(IMAGE, data=["ä", "b"]), b"", BadRequest, "base64"),
    (with_input(IMAGE, data=["####", "b"]), b"", BadRequest, "base64"),
    (with_input(IMAGE, data=[1, 2]), b"", BadRequest, "list of strings"),
    (
        with_input(IMAGE, data=TEXTS, parameters={"content_type": "str"}),
        b"",
        BadRequest,
        "base64 only",
    ),
    (
        with_input(IMAGE, data=TEXTS, parameters={"shared_memory_region": "x"}),
        b"",
        BadRequest,
        "not supported here",
    ),
    (
        with_input(IMAGE, data=TEXTS, parameters={"binary_data_size": 0}),
        b"",
        BadRequest,
        "not both",
    ),
    (with_input(IMAGE, data=TEXTS), b"more", BadRequest, "4 bytes follow"),
    (in_binary(IMAGE, 5), b"more", BadRequest, "that follow the JSON, 4 here"),
    (in_binary(IMAGE, "4"), b"more", BadRequest, "that follow the JSON, 4 here"),
    (in_binary(IMAGE, 4), b"\1\0\0\0", BadRequest, "longer than the data"),
    (in_binary(IMAGE, 2), b"\0\0", BadRequest, "longer than the data"),
    (in_binary(IMAGE, 4), b"\0\0\0\0", BadRequest, "2 elements, but there are 1"),
    (with_input({**FLOATS, "shape": [2, 3, 2, 3]}, data=[0]), b"", BadRequest, r"\[n, 3, 2, 2\]"),
    (with_input({**FLOATS, "shape": [2]}, data=[0]), b"", BadRequest, r"\[n, 3, 2, 2\]"),
    (with_input(FLOATS, data=[0.5] * 23), b"", BadRequest, "24 numbers, but data has 23"),
    (with_input(FLOATS, data=[[1], [2, 3]]), b"", BadRequest, "nested evenly"),
    (with_input(FLOATS, data=["1.5"] * 24), b"", BadRequest, "list of numbers"),
    (with_input(FLOATS, data=[None] * 24), b"", BadRequest, "list of numbers"),
    (with_input(FLOATS, data=[True] * 24), b"", BadRequest, "list of numbers"),
    (with_input(FLOATS, data=[10**400] * 24), b"", BadRequest, "list of numbers"),
    (with_input(FLOATS, data=[1e39] * 24), b"", BadRequest, "too large for FP32"),
    (with_input(FLOATS, data=[float("nan")] * 24), b"", BadRequest, "NaN"),
    (with_input(FLOATS, data=[float("-inf")] * 24), b"", BadRequest, "infinity"),
    (in_binary(FLOATS, 95), b"\0" * 95, BadRequest, "has 96 bytes of data, not 95"),
    (in_binary(FLOATS, 96), b"\0\0\xc0\x7f" * 24, BadRequest, "NaN"),
    (in_binary(BYTES, 96), b"\0" * 96, BadRequest, "has 24 bytes of data, not 96"),
    (with_input(BYTES, data=[256] * 24), b"", BadRequest, "whole numbers from 0 to 255"),
    (
        with_input({**FLOATS, "datatype": "INT8"}, data=[0]),
        b"",
        BadRequest,
        "must be FP32 or UINT8, not INT8",
    ),
    ({**with_input(IMAGE, data=TEXTS), "id": 3}, b"", BadRequest, "id must be a string"),
    (
        {**with_input(IMAGE, data=TEXTS), "parameters": []},
        b"",
        BadRequest,
        "parameters must be an object",
    ),
    (
        {**with_input(IMAGE, data=TEXTS), "parameters": {"r": [1]}},
        b"",
        InvalidParameter,
        "number or a string",
    ),
    (
        {**with_input(IMAGE, data=TEXTS), "parameters": {"timeout": 1, "deadline_ms": 1}},
        b"",
        InvalidParameter,
        "give one",
    ),
    (
        {**with_input(IMAGE, data=TEXTS), "outputs": [CLASSIFICATION]},
        b"",
        BadRequest,
        "classification extension is not supported; .* top_k",
    ),
    (with_input(IMAGE), b"", BadRequest, "data is required"),
    (with_input(IMAGE, data=None), b"", BadRequest, "data is required"),
    (
        {**with_input(IMAGE, data=TEXTS), "parameters": {"top_k": 4}},
        b"",
        InvalidParameter,
        "1 to 3",
    ),
    (
        {**with_input(IMAGE, data=TEXTS), "parameters": {"deadline_ms": 1e300}},
        b"",
        InvalidParameter,
        "positive",
    ),
    (
        {**with_input(IMAGE, data=TEXTS), "parameters": {"binary_data_output": 1}},
        b"",
        BadRequest,
        "true or false",
    ),
    ({**with_input(IMAGE, data=TEXTS), "outputs": {}}, b"", BadRequest, "outputs must be a list"),
    (
        {**with_input(IMAGE, data=TEXTS), "outputs": [{"name": "x"}]},
        b"",
        BadRequest,
        "unknown or repeated; there are labels, scores",
    ),
    (
        {**with_input(IMAGE, data=TEXTS), "outputs": [{"name": "labels"}] * 2},
        b"",
        BadRequest,
        "'labels' is unknown or repeated",
    ),
]


@pytest.mark.parametrize(
    ("message", "binary_data", "error", "text"), REFUSED, ids=lambda value: str(value)[:40]
)
def test_a_malformed_request_is_refused(message, binary_data, error, text):
    with pytest.raises(error, match=text):
        parse(message, binary_data)


@pytest.mark.parametrize("header", ["0", "-1", "x", "", "9" * 13, "999", "٣"])
def test_a_wrong_length_of_the_json_is_refused(header):
    body = json.dumps(with_input(IMAGE, data=TEXTS)).encode()
    with pytest.raises(BadRequest, match="must be the size of the JSON"):
        parse_infer_request(body, header, MODEL, "0", 0.0)
