"""The parser of a request for embeddings: the members of its body, and the query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from starlette.datastructures import QueryParams

from server.api.contract.auto_schedules import AUTO
from server.api.contract.openapi_parameters import PARAMETER_NAMES
from server.api.contract.parameter_values import (
    QUOTED_CHARACTERS,
    invalid_parameter,
    parameter_text,
)
from server.api.contract.params import (
    Params,
    check_names,
    find_model,
    parse_deadline,
    parse_params,
    parse_r,
)
from server.api.contract.vectors import parse_vector_form, with_dimensions
from server.api.contract.windows import Windows
from server.api.pipeline.base64_image import Base64Image
from server.api.pipeline.body import ParsedRequest
from server.api.pipeline.json_images import as_base64_image, check_count, parse_object
from server.ipc.messages import ModelInfo
from server.media.limits import VideoLimits

EncodingFormat = Literal["float", "base64"]
# Members of OpenAI's; `model` is a parameter of `/embed` as well.
OPENAI_MEMBERS = ("input", "encoding_format", "dimensions", "user")
PARAMETERS = PARAMETER_NAMES["features"]

_EXPECTED = 'send {"model": "NAME", "input": "data:image/jpeg;base64,..."}, or a list as input'


@dataclass(frozen=True)
class EmbeddingsRequest(ParsedRequest):
    """A request for embeddings, one for each of its inputs."""

    encoding_format: EncodingFormat


def check_query(query: QueryParams, models: Mapping[str, ModelInfo]) -> ModelInfo | None:
    """Check what of a query can be checked without the body, and return the model that it names.

    Other values may depend on members of the body.

    Raises:
        InvalidParameter: a parameter is unknown, repeated, or has a value that is never allowed.
        NotFound: there is no such model.
    """
    check_names(query, "features")
    parse_deadline(query.get("deadline_ms") or None, arrival=0.0)
    parse_vector_form(query.get("normalize") or None)
    name = query.get("model") or None
    if name is None:
        return None
    model = find_model(name, models)
    if query.get("r", AUTO) != AUTO:
        parse_r(query["r"], model)
    return model


def parse_embeddings_request(
    body: bytes,
    query: QueryParams,
    models: Mapping[str, ModelInfo],
    default_r: str,
    arrival: float,
    max_views: int = VideoLimits.max_windows,
) -> EmbeddingsRequest:
    """Parse the body of a request, and its query, which may hold parameters of ``/embed`` as well.

    Args:
        models, default_r, arrival, max_views: see `parse_params`.

    Raises:
        BadRequest: the body is not JSON.
        InvalidParameter: a member or parameter is unknown, repeated, or has a value that is not
            allowed.
        NotFound: there is no such model.
        TooLarge: there are too many inputs.
    """
    members = parse_object(body, _EXPECTED)
    for name in members:
        if name not in (*OPENAI_MEMBERS, *PARAMETERS):
            quoted = name[:QUOTED_CHARACTERS]
            known = ", ".join((*OPENAI_MEMBERS, *PARAMETERS))
            raise invalid_parameter(quoted, f"there is no member {quoted!r}; there are {known}")
    given = query.multi_items()
    given += [
        (name, _text_of(name, value)) for name, value in members.items() if name in PARAMETERS
    ]
    params = parse_params(
        QueryParams(given), models, default_r, arrival, "features", max_views=max_views
    )
    return EmbeddingsRequest(
        params=_with_vectors(params, members, given),
        images=[*_parse_input(members.get("input"))],
        encoding_format=_parse_encoding(members.get("encoding_format", "float")),
    )


def _text_of(name: str, value: Any) -> str:
    """Return a member of the JSON as it would stand in a query. Raises `InvalidParameter`."""
    if name == "normalize" and isinstance(value, bool):
        return str(value).lower()
    if name == "model" and not isinstance(value, str):
        raise invalid_parameter(name, "model must be the name of a model, a string")
    return parameter_text(name, value)


def _with_vectors(
    params: Params, members: Mapping[str, Any], given: list[tuple[str, str]]
) -> Params:
    """Return ``params`` with the form of the vectors: of length 1 unless the request says no."""
    if params.windows is Windows.EACH:
        raise invalid_parameter(
            "windows", "there is one embedding for each input; allowed are first and mean"
        )
    form = params.vectors
    if not any(name == "normalize" and text for name, text in given):
        form = replace(form, normalize=True)
    form = with_dimensions(form, members.get("dimensions"), params.model)
    return replace(params, vectors=form)


def _parse_input(value: Any) -> list[Base64Image]:
    """Return the inputs, at least one; their base64 is decoded when their turn comes."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise invalid_parameter(
            "input", f"input must be an image or a list of at least one; {_EXPECTED}"
        )
    check_count(len(value))
    if not all(isinstance(text, str) for text in value):
        raise invalid_parameter(
            "input",
            "input must be strings, each a data URL or base64; a list of numbers would be the"
            " tokens of a text, which this server does not take",
        )
    return [as_base64_image(text) for text in value]


def _parse_encoding(value: Any) -> EncodingFormat:
    allowed = get_args(EncodingFormat)
    if value not in allowed:
        raise invalid_parameter(
            "encoding_format", f"encoding_format must be {' or '.join(allowed)}"
        )
    return cast("EncodingFormat", value)
