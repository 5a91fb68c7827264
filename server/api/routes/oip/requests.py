"""An inference request of the protocol: its JSON, and the binary tensor that may follow it.

https://github.com/kserve/open-inference-protocol, and its extension for binary tensor data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams

from server.api.contract.params import Params, parse_params
from server.api.pipeline.multipart import MAX_PARTS
from server.api.pipeline.uploads import Asked, Image
from server.api.routes.oip.tensors import read_bytes, read_floats
from server.errors import BadRequest, InvalidParameter, TooLarge
from server.ipc.messages import ModelInfo

HEADER = "Inference-Header-Content-Length"
# JSON of this size is parsed in tens of milliseconds, in which Python does nothing else. Binary
# data has no such limit.
MAX_JSON_BYTES = 8_000_000
OUTPUTS = {"labels": "BYTES", "scores": "FP32"}


@dataclass(frozen=True)
class Output:
    """An output that is wanted, as binary data or in JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest(Asked):
    """What an inference request asks for. ``id`` is the client's own, given back."""

    id: str | None
    outputs: tuple[Output, ...]


def read_request(
    body: bytes, header: str | None, model: ModelInfo, default_r: str, arrival: float
) -> InferRequest:
    """Take a request apart.

    Args:
        header: the value of the HTTP header `HEADER`: of how many bytes at the body's start the
            JSON is; else all.
        default_r, arrival: see `parse_params`.

    Raises:
        BadRequest: it is malformed, or its input is none that ``model`` takes.
        InvalidParameter: a parameter is unknown, or has a value that is not allowed.
        TooLarge: it has too many images, or its JSON too many bytes.
    """
    size = json_size(header, len(body))
    message = parse_json(body[:size])
    parameters = dict(member(message, "parameters", dict, {}))
    binary = flag(parameters.pop("binary_data_output", False), "binary_data_output")
    params = read_params(parameters, model, default_r, arrival)
    inputs = member(message, "inputs", list)
    if len(inputs) != 1:
        raise BadRequest("there must be one input: image (BYTES) or pixel_values (FP32)")
    return InferRequest(
        params=params,
        images=read_input(inputs[0], memoryview(body)[size:], model),
        id=member(message, "id", str, None),
        outputs=read_outputs(member(message, "outputs", list, []), binary),
    )


def json_size(header: str | None, size: int) -> int:
    """How many of the body's ``size`` bytes are JSON. Raises `BadRequest` or `TooLarge`."""
    if header is not None:
        if not (
            header.isascii() and header.isdigit() and len(header) <= 12 and 0 < int(header) <= size
        ):
            raise BadRequest(f"{HEADER} must be the size of the JSON, 1 to {size} bytes here")
        size = int(header)
    if size > MAX_JSON_BYTES:
        text = (
            f"the JSON has {size} bytes; allowed are {MAX_JSON_BYTES}, and images may be sent as"
            " binary data"
        )
        raise TooLarge(text, limit=MAX_JSON_BYTES)
    return size


def parse_json(data: bytes) -> Mapping[str, Any]:
    """The JSON object in ``data``. Raises `BadRequest`."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest(
            f"the body is no JSON; where binary data follows it, {HEADER} says how long it is"
        ) from None
    if not isinstance(found, dict):
        raise BadRequest("the JSON must be an object")
    return found


def member(parent: Any, name: str, kind: type, *default: Any) -> Any:
    """The member ``name`` of a JSON object, of type ``kind``, or ``default``. Raises `BadRequest`."""
    if not isinstance(parent, dict):
        raise BadRequest("inputs and outputs must be JSON objects")
    if name not in parent and default:
        return default[0]
    if not isinstance(parent.get(name), kind):
        words = {dict: "an object", list: "a list", str: "a string", int: "a number"}
        raise BadRequest(
            f"{name} must be there, as {words[kind]}"
            if not default
            else f"{name} must be {words[kind]}"
        )
    return parent[name]


def flag(value: Any, name: str) -> bool:
    """``value``, a bool. Raises `BadRequest`."""
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false")
    return value


def only(parameters: Mapping[str, Any], *names: str) -> None:
    """Raises `BadRequest` if there are ``parameters`` of a tensor other than ``names``."""
    for name in parameters:
        if name not in names:
            raise BadRequest(
                f"the parameter {name[:40]!r} is not supported here; there are {', '.join(names)}"
            )


def read_params(
    parameters: Mapping[str, Any], model: ModelInfo, default_r: str, arrival: float
) -> Params:
    """The request's parameters, which are those of ``/classify`` but for the model. Raises `InvalidParameter`."""
    texts = {}
    for name, value in parameters.items():
        if name == "model":
            raise InvalidParameter("the model is named in the path", parameter=name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidParameter(f"{name[:40]} must be a number or a string", parameter=name[:40])
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        texts[name] = str(int(value) if whole else value)
    return parse_params(QueryParams(texts), {model.name: model}, default_r, arrival)


def read_input(tensor: Any, binary: memoryview, model: ModelInfo) -> list[Image]:
    """The images of an input; ``binary`` is what follows the JSON. Raises `BadRequest` or `TooLarge`."""
    name = member(tensor, "name", str)
    datatype = member(tensor, "datatype", str)
    size = model.transform.size
    takes: dict[str, tuple[str, tuple[int, ...]]] = {
        "image": ("BYTES", ()),
        "pixel_values": ("FP32", size),
    }
    if name not in takes:
        raise BadRequest(
            f"there is no input {name[:40]!r}; there are image (BYTES) and pixel_values (FP32)"
        )
    expected, rest = takes[name]
    if datatype != expected:
        raise BadRequest(f"{name} must be {expected}, not {datatype[:40]}")
    shape = read_shape(member(tensor, "shape", list), name, rest)
    parameters = member(tensor, "parameters", dict, {})
    only(parameters, "binary_data_size", "content_type")
    if parameters.get("content_type", "base64") != "base64":
        raise BadRequest(
            "content_type of an input can be base64 only; images tell their formats themselves"
        )
    data = read_data(tensor, parameters, binary)
    return list(read_bytes(shape, data) if datatype == "BYTES" else read_floats(shape, data))


def read_shape(shape: list[Any], name: str, rest: tuple[int, ...]) -> tuple[int, ...]:
    """``(n, *rest)`` as a shape in JSON. Raises `BadRequest` or `TooLarge`."""
    wanted = ", ".join(["n", *map(str, rest)])
    whole = all(type(size) is int for size in shape)
    if not whole or not shape or shape[0] < 1 or tuple(shape[1:]) != rest:
        raise BadRequest(f"the shape of {name} must be [{wanted}], n at least 1")
    if shape[0] > MAX_PARTS:
        raise TooLarge(
            f"there are {str(shape[0])[:20]} images; a request may have {MAX_PARTS}",
            limit=MAX_PARTS,
        )
    return tuple(shape)


def read_data(tensor: Mapping[str, Any], parameters: Mapping[str, Any], binary: memoryview) -> Any:
    """The data of the only input, in JSON or ``binary``. Raises `BadRequest`."""
    if "binary_data_size" not in parameters:
        if binary:
            raise BadRequest(
                f"{len(binary)} bytes follow the JSON; its input must say so: binary_data_size"
            )
        return member(tensor, "data", list)
    if "data" in tensor:
        raise BadRequest("an input has data or binary_data_size, not both")
    if type(parameters["binary_data_size"]) is not int or parameters["binary_data_size"] != len(
        binary
    ):
        raise BadRequest(
            f"binary_data_size must be the number of bytes that follow the JSON, {len(binary)} here"
        )
    return binary


def read_outputs(wanted: list[Any], binary: bool) -> tuple[Output, ...]:
    """The outputs that are ``wanted``, all where none is named. Raises `BadRequest`.

    Args:
        binary: whether those that do not say are binary data.
    """
    outputs: list[Output] = []
    for tensor in wanted or [{"name": name} for name in OUTPUTS]:
        name = member(tensor, "name", str)
        parameters = member(tensor, "parameters", dict, {})
        if name not in OUTPUTS or name in (output.name for output in outputs):
            raise BadRequest(f"outputs are {', '.join(OUTPUTS)}, each once; {name[:40]!r} is not")
        only(parameters, "binary_data")
        outputs.append(Output(name, flag(parameters.get("binary_data", binary), "binary_data")))
    return tuple(outputs)
