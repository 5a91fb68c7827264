"""The query parameters of the image endpoints as ``/openapi.json`` describes them.

FastAPI does not validate them: its error texts come from its library, so
`server.api.contract.params` parses the query.
"""

from __future__ import annotations

from typing import Any, get_args

from server.api.contract.label_sets import OPENAPI_TEXT
from server.api.contract.vectors import OPENAPI_NORMALIZE
from server.api.contract.views import OPENAPI_VIEWS
from server.api.contract.windows import openapi_windows
from server.ipc.messages import OutputKind

DEFAULT_TOP_K = 5

_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "r",
        "in": "query",
        "description": (
            "Tokens merged away per block: `16`; `16:-1`, changing linearly over the blocks with an"
            " inflection from -1 (most in the first blocks) to 1; or `30,0,5,20`, one number per"
            " block. 0 is the exact original model. `auto`: the smallest of the model's levels that"
            " meets the deadlines."
        ),
        "schema": {"type": "string", "examples": ["16", "16:-1", "30,0,5,20", "auto"]},
    },
    {
        "name": "model",
        "in": "query",
        "description": "A name or alias that `/models` lists; default: the first of them.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]+$"},
    },
    {
        "name": "top_k",
        "in": "query",
        "description": f"How many classes to return, best first; default: {DEFAULT_TOP_K}.",
        "schema": {"type": "integer", "minimum": 1},
    },
    {
        "name": "deadline_ms",
        "in": "query",
        "description": (
            "Milliseconds from the arrival of the request's headers; a request that misses its"
            " deadline gets a 504."
        ),
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": "r_max",
        "in": "query",
        "description": (
            "With `r=auto`: the largest level that may be chosen; default: all that `/models`"
            " lists."
        ),
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "min_accuracy",
        "in": "query",
        "description": (
            "With `r=auto`: only levels for which `/models` lists at least this accuracy, in"
            " percent; with `confidence` its `cascade_accuracy`, where that holds."
        ),
        "schema": {"type": "number", "minimum": 0, "maximum": 100},
    },
    {
        "name": "min_agreement",
        "in": "query",
        "description": (
            "With `r=auto`: only levels of which the model's profile shows that at least so many"
            " percent of images get the class of `r=0`: `agreement_low` of `/models`, or"
            " `agreement` where there is none; with `confidence` its `margin_agreement`, where that"
            " holds."
        ),
        "schema": {"type": "number", "minimum": 0, "maximum": 100},
    },
    {
        "name": "min_fidelity",
        "in": "query",
        "description": (
            "With `r=auto`: only levels of which the model's profile shows that the mean cosine of"
            " embeddings with those of `r=0` is at least this: `cosine_low` of `/models`, or"
            " `cosine` where there is none."
        ),
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
    },
    {
        "name": "confidence",
        "in": "query",
        "description": (
            "An image runs again at `confidence_r` if the probability of its best class exceeds"
            " that of the second by less than this; `auto`: by the margin of the model's profile."
        ),
        "schema": {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "enum": ["auto"]},
            ]
        },
    },
    {
        "name": "confidence_r",
        "in": "query",
        "description": "With `confidence`: `r` of the second pass; default: 0, the exact model.",
        "schema": {"type": "string", "examples": ["0", "8"]},
    },
    OPENAPI_TEXT,
]
# Of no meaning for features and pictures.
_CLASS_PARAMETERS = ("top_k", "confidence", "confidence_r", "text")


def openapi_parameters(output_kind: OutputKind) -> list[dict[str, Any]]:
    """Return the OpenAPI parameters of an endpoint whose output is ``output_kind``."""
    return list(_PARAMETERS_OF[output_kind])


def _parameters_of(output_kind: OutputKind) -> list[dict[str, Any]]:
    parameters = [
        parameter
        for parameter in _PARAMETERS
        if output_kind == "classes" or parameter["name"] not in _CLASS_PARAMETERS
    ]
    of_vectors = [OPENAPI_NORMALIZE] if output_kind == "features" else []
    return [*parameters, *of_vectors, openapi_windows(output_kind), *OPENAPI_VIEWS]


_OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)
_PARAMETERS_OF = {kind: _parameters_of(kind) for kind in _OUTPUT_KINDS}
# By the output of the endpoint.
PARAMETER_NAMES = {
    kind: tuple(str(parameter["name"]) for parameter in parameters)
    for kind, parameters in _PARAMETERS_OF.items()
}
