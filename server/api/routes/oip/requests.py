"""The parser of an inference request: its JSON, and the binary data that may follow it.

https://github.com/kserve/open-inference-protocol, and its extension for binary tensor data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from starlette.datastructures import QueryParams

from server.api.contract.parameter_values import QUOTED_CHARACTERS, is_integer, parameter_text
from server.api.contract.params import Params, parse_params
from server.api.contract.vectors import VectorForm, parse_vector_form
from server.api.contract.windows import Windows
from server.api.pipeline.admission import ImageContent
from server.api.pipeline.body import ParsedRequest
from server.api.pipeline.multipart import MAX_PARTS
from server.api.routes.oip.tensors import (
    parse_bytes_tensor,
    parse_float_tensor,
    parse_uint8_tensor,
)
from server.api.routes.oip.triton_parameters import replace_triton_parameters
from server.errors import BadRequest, InvalidParameter, TooLarge
from server.ipc.messages import ModelInfo, OutputKind
from server.media.limits import VideoLimits
from server.media.modality import Modality
from server.media.transforms import VideoTransform, input_shape

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
# The parser holds the GIL for tens of milliseconds on JSON of this size. Binary data has no such
# limit.
MAX_JSON_BYTES = 8_000_000
MAX_IMAGES = MAX_PARTS  # as in a multipart body

# A request has one of the inputs of its model: an encoded file, or the model's own input, which the
# client normalises (FP32) or the engine (UINT8).
INPUT_DATATYPES: dict[Modality, dict[str, tuple[str, ...]]] = {
    Modality.IMAGE: {"image": ("BYTES",), "pixel_values": ("FP32", "UINT8")},
    Modality.AUDIO: {"audio": ("BYTES",), "pixel_values": ("FP32",)},
    Modality.VIDEO: {"video": ("BYTES",), "pixel_values": ("FP32", "UINT8")},
}
EMBEDDING = "embedding"
CLASS_OUTPUTS = {"labels": "BYTES", "scores": "FP32"}
OUTPUT_DATATYPES = {**CLASS_OUTPUTS, EMBEDDING: "FP32"}

Number = TypeVar("Number", np.float32, np.uint8)

_MAX_LENGTH_DIGITS = 12  # no body is that long; int() fails on thousands of digits


@dataclass(frozen=True)
class RequestedOutput:
    """One output of a request; ``binary``: as binary data, not as JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest(ParsedRequest):
    """An inference request. The response repeats ``id``, which the client may choose."""

    id: str | None
    outputs: tuple[RequestedOutput, ...]

    @property
    def wants_embedding(self) -> bool:
        """Whether the embedding is among the outputs."""
        return names_embedding(self.outputs)


def names_embedding(outputs: tuple[RequestedOutput, ...]) -> bool:
    """Whether the embedding is among ``outputs``."""
    return any(output.name == EMBEDDING for output in outputs)


def parse_infer_request(
    body: bytes,
    header: str | None,
    model: ModelInfo,
    default_r: str,
    arrival: float,
    max_views: int = VideoLimits.max_windows,
) -> InferRequest:
    """Parse the body of an inference request.

    Args:
        header: the value of the HTTP header `JSON_LENGTH_HEADER`, the size of the JSON at the
            start of the body; None if the whole body is JSON.
        default_r, arrival, max_views: see `parse_params`.

    Raises:
        BadRequest: the body is malformed, or ``model`` does not take its input.
        InvalidParameter: a parameter is unknown, or has a value that is not allowed.
        TooLarge: there are too many images, or too many bytes of JSON.
    """
    json_bytes = json_length(header, len(body))
    message = parse_json(body[:json_bytes])
    binary_data = memoryview(body)[json_bytes:]

    parameters = parameters_of(message)
    binary_output = parameters.pop("binary_data_output", False)
    check_bool(binary_output, "binary_data_output")
    outputs = parse_outputs(optional_member(message, "outputs", list, []), binary_output, model)
    params = parse_parameters(parameters, outputs, model, default_r, arrival, max_views)

    inputs = required_member(message, "inputs", list)
    if len(inputs) != 1:
        raise BadRequest(f"there must be one input: {_describe_inputs(model, 'or')}")
    images = parse_input(inputs[0], binary_data, model)

    request_id = optional_member(message, "id", str, None)
    return InferRequest(params, images, request_id, outputs)


def json_length(header: str | None, body_bytes: int) -> int:
    """Return how many bytes of the body are JSON. Raises `BadRequest` or `TooLarge`."""
    length = body_bytes
    if header is not None:
        is_number = is_integer(header, _MAX_LENGTH_DIGITS)
        if not is_number or not 0 < int(header) <= body_bytes:
            raise BadRequest(
                f"{JSON_LENGTH_HEADER} must be the size of the JSON, 1 to {body_bytes} bytes here"
            )
        length = int(header)
    if length > MAX_JSON_BYTES:
        raise TooLarge(
            f"the JSON has {length} bytes; allowed are {MAX_JSON_BYTES}, and images may be sent as"
            " binary data",
            limit=MAX_JSON_BYTES,
        )
    return length


def parse_json(data: bytes) -> Mapping[str, Any]:
    """Return the JSON object in ``data``. Raises `BadRequest`."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest(
            "the body is not JSON; if binary data follows the JSON,"
            f" {JSON_LENGTH_HEADER} must be the size of the JSON"
        ) from None
    if not isinstance(message, dict):
        raise BadRequest("the JSON must be an object")
    return message


_TYPE_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}


def required_member(parent: Any, name: str, json_type: type) -> Any:
    """Return the member ``name`` of a JSON object. Raises `BadRequest`."""
    check_object(parent)
    if not isinstance(parent.get(name), json_type):
        raise BadRequest(f"{name} is required, as {_TYPE_NAMES[json_type]}")
    return parent[name]


def optional_member(parent: Any, name: str, json_type: type, default: Any) -> Any:
    """Return the member ``name`` of a JSON object, or ``default`` for null or no such member.

    Raises:
        BadRequest: ``parent`` is no object, or the member has another type.
    """
    check_object(parent)
    value = parent.get(name)
    if value is None:
        return default
    if not isinstance(value, json_type):
        raise BadRequest(f"{name} must be {_TYPE_NAMES[json_type]}")
    return value


def parameters_of(parent: Any) -> dict[str, Any]:
    """Return the parameters of a request, an input or an output that are not null.

    Raises:
        BadRequest: they are not an object.
    """
    parameters = optional_member(parent, "parameters", dict, {})
    return {name: value for name, value in parameters.items() if value is not None}


def check_object(value: Any) -> None:
    """Raise `BadRequest` unless ``value`` is a JSON object."""
    if not isinstance(value, dict):
        raise BadRequest("inputs and outputs must be JSON objects")


def check_bool(value: Any, name: str) -> None:
    """Raise `BadRequest` unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false")


def check_parameter_names(parameters: Mapping[str, Any], supported: tuple[str, ...]) -> None:
    """Raise `BadRequest` if a tensor has a parameter that is not ``supported``."""
    for name in parameters:
        if name == "classification":
            raise BadRequest(
                "Triton's classification extension is not supported; the outputs labels and scores"
                " are the best classes, top_k of them"
            )
        if name not in supported:
            raise BadRequest(
                f"the parameter {name[:QUOTED_CHARACTERS]!r} is not supported here; there are"
                f" {', '.join(supported)}"
            )


def parse_parameters(
    parameters: Mapping[str, Any],
    outputs: tuple[RequestedOutput, ...],
    model: ModelInfo,
    default_r: str,
    arrival: float,
    max_views: int,
) -> Params:
    """Parse the request's parameters, less the model, and Triton's own.

    They are those of ``/classify``, or those of ``/embed`` if the embedding is the only output;
    ``normalize`` stands beside both if it is one of them.

    Raises:
        InvalidParameter: a parameter is unknown, or has a value that is not allowed.
    """
    texts = {}
    vectors = VectorForm()
    wants_embedding = names_embedding(outputs)
    for name, value in replace_triton_parameters(parameters).items():
        if name == "normalize":
            if not wants_embedding:
                raise InvalidParameter(
                    f"normalize is of the output {EMBEDDING}; name it in outputs", parameter=name
                )
            vectors = parse_vector_form(str(value))
            continue
        if name == "model":
            raise InvalidParameter("the model is named in the path", parameter=name)
        texts[name] = parameter_text(name[:QUOTED_CHARACTERS], value)
    models = {model.name: model}
    wants_classes = any(output.name in CLASS_OUTPUTS for output in outputs)
    kind: OutputKind = "classes" if wants_classes else "features"
    params = parse_params(QueryParams(texts), models, default_r, arrival, kind, max_views)
    if params.windows is Windows.EACH:
        raise InvalidParameter(
            f"the outputs have one row for each {model.modality.noun}; allowed are first and mean",
            parameter="windows",
        )
    return replace(params, vectors=vectors)


def parse_input(tensor: Any, binary_data: memoryview, model: ModelInfo) -> list[ImageContent]:
    """Return the images of the input tensor. Raises `BadRequest` or `TooLarge`."""
    name = required_member(tensor, "name", str)
    datatype = required_member(tensor, "datatype", str)
    datatypes = INPUT_DATATYPES[model.modality]
    if name not in datatypes:
        raise BadRequest(
            f"there is no input {name[:QUOTED_CHARACTERS]!r};"
            f" there are {_describe_inputs(model, 'and')}"
        )
    if datatype not in datatypes[name]:
        expected = " or ".join(datatypes[name])
        raise BadRequest(f"{name} must be {expected}, not {datatype[:QUOTED_CHARACTERS]}")

    image_shape = input_shape(model.transform) if name == "pixel_values" else ()
    shape = parse_shape(required_member(tensor, "shape", list), name, image_shape)
    parameters = parameters_of(tensor)
    check_parameter_names(parameters, ("binary_data_size", "content_type"))
    if parameters.get("content_type", "base64") != "base64":
        raise BadRequest(
            "content_type of an input can be base64 only; the server detects the format of an image"
        )

    data = input_data(tensor, parameters, binary_data)
    if datatype == "BYTES":
        return list(parse_bytes_tensor(shape, data))
    if datatype == "UINT8":
        return [as_input(pixels, model) for pixels in parse_uint8_tensor(shape, data)]
    return [as_input(pixels, model) for pixels in parse_float_tensor(shape, data)]


def as_input(pixels: npt.NDArray[Number], model: ModelInfo) -> npt.NDArray[Number]:
    """Return a view of ``pixel_values`` of one image, sound or video in the layout of its slot.

    That is ``(C, H, W)``; of a clip ``(C, T, H, W)``, whose elements come in the same order as
    those of the tall picture ``(C, T*H, W)``.
    """
    if isinstance(model.transform, VideoTransform):
        return pixels.swapaxes(0, 1)
    return pixels


def _describe_inputs(model: ModelInfo, conjunction: str) -> str:
    datatypes = INPUT_DATATYPES[model.modality]
    return f" {conjunction} ".join(
        f"{name} ({' or '.join(several)})" for name, several in datatypes.items()
    )


def parse_shape(
    shape: list[Any],
    name: str,
    image_shape: tuple[int, ...],
) -> tuple[int, ...]:
    """Return the shape ``(n, *image_shape)`` of an input. Raises `BadRequest` or `TooLarge`."""
    # The type itself, since bool is a subclass of int.
    all_integers = all(type(size) is int for size in shape)
    if not all_integers or not shape or shape[0] < 1 or tuple(shape[1:]) != image_shape:
        expected = ", ".join(["n", *map(str, image_shape)])
        raise BadRequest(f"the shape of {name} must be [{expected}], n at least 1")
    if shape[0] > MAX_IMAGES:
        count = str(shape[0])[:20]
        raise TooLarge(
            f"there are {count} images; a request may have {MAX_IMAGES}",
            limit=MAX_IMAGES,
        )
    return tuple(shape)


def input_data(
    tensor: Mapping[str, Any],
    parameters: Mapping[str, Any],
    binary_data: memoryview,
) -> Any:
    """Return the data of the only input: that of its JSON, or ``binary_data``.

    Raises:
        BadRequest: the data is missing, or its place or size is not clear.
    """
    if "binary_data_size" not in parameters:
        if binary_data:
            raise BadRequest(
                f"{len(binary_data)} bytes follow the JSON; the input must have binary_data_size"
            )
        return required_member(tensor, "data", list)
    if tensor.get("data") is not None:
        raise BadRequest("an input has data or binary_data_size, not both")
    size = parameters["binary_data_size"]
    if type(size) is not int or size != len(binary_data):
        raise BadRequest(
            "binary_data_size must be the number of bytes that follow the JSON,"
            f" {len(binary_data)} here"
        )
    return binary_data


def outputs_of(model: ModelInfo) -> dict[str, str]:
    """Return the datatypes of the outputs that ``model`` has, by their names."""
    return OUTPUT_DATATYPES if model.labels else {EMBEDDING: OUTPUT_DATATYPES[EMBEDDING]}


def parse_outputs(
    tensors: list[Any], binary_default: bool, model: ModelInfo
) -> tuple[RequestedOutput, ...]:
    """Return the outputs that a request names; if it names none, the classes, where there are any.

    Args:
        binary_default: for outputs that do not say whether they are binary data.

    Raises:
        BadRequest: an output is unknown, repeated, or malformed.
    """
    known = outputs_of(model)
    if not tensors:
        tensors = [{"name": name} for name in (CLASS_OUTPUTS if model.labels else known)]
    outputs: dict[str, RequestedOutput] = {}
    for tensor in tensors:
        name = required_member(tensor, "name", str)
        parameters = parameters_of(tensor)
        if name not in known or name in outputs:
            raise BadRequest(
                f"the output {name[:QUOTED_CHARACTERS]!r} is unknown or repeated; there are"
                f" {', '.join(known)}"
            )
        check_parameter_names(parameters, ("binary_data",))
        binary = parameters.get("binary_data", binary_default)
        check_bool(binary, "binary_data")
        outputs[name] = RequestedOutput(name, binary)
    return tuple(outputs.values())
