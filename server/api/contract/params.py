"""The query parameters of an image's endpoints, checked against the model that is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams

from server.api.contract.allowed_schedules import AUTO, invalid, parse_choices
from server.errors import NotFound
from server.ipc.messages import ModelInfo, OutputKind
from tome_core.schedule import Schedule

DEFAULT_TOP_K = 5

# For /openapi.json: FastAPI's own validation would answer with its library's texts, so parameters
# are parsed below.
DOCUMENTATION: list[dict[str, Any]] = [
    {
        "name": "r",
        "in": "query",
        "description": (
            "Tokens merged away per block: `16`; `16:-1`, changing linearly over the blocks with an"
            " inflection from -1 (most in the first blocks) to 1; or `30,0,5,20`, one number per"
            " block. 0 is the exact original model. `auto`: the smallest of the model's levels with"
            " which the deadlines are met."
        ),
        "schema": {"type": "string", "examples": ["16", "16:-1", "30,0,5,20", "auto"]},
    },
    {
        "name": "model",
        "in": "query",
        "description": "A name that `/models` lists; the first of them where it is missing.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]+$"},
    },
    {
        "name": "top_k",
        "in": "query",
        "description": (
            f"How many classes to answer with, best first; {DEFAULT_TOP_K} where it is missing."
        ),
        "schema": {"type": "integer", "minimum": 1},
    },
    {
        "name": "deadline_ms",
        "in": "query",
        "description": (
            "Milliseconds after the arrival of the request's headers; an answer later than that is"
            " a 504."
        ),
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": "r_max",
        "in": "query",
        "description": (
            "With `r=auto`: no level above this one; by default all that `/models` lists may be"
            " chosen."
        ),
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "min_accuracy",
        "in": "query",
        "description": (
            "With `r=auto`: only levels for which `/models` lists at least this accuracy, in"
            " percent."
        ),
        "schema": {"type": "number", "minimum": 0, "maximum": 100},
    },
]


def documentation(want: OutputKind) -> list[dict[str, Any]]:
    """The parameters of a request that wants ``want``, for ``/openapi.json``."""
    return [
        parameter
        for parameter in DOCUMENTATION
        if want == "classes" or parameter["name"] != "top_k"
    ]


@dataclass(frozen=True)
class Params:
    """What a request asks for.

    Attributes:
        choices: the schedule that was asked for; with ``r=auto`` those that may be chosen, mildest
            first.
        requested: the text of ``r`` as it was asked for.
        top_k: how many classes, 0 where none are wanted.
        deadline: ``time.monotonic()`` seconds, or None.
    """

    model: ModelInfo
    choices: tuple[Schedule, ...]
    requested: str
    top_k: int
    deadline: float | None
    want: OutputKind

    @property
    def text(self) -> str:
        """``r``, in its normal form, as far as it is known before the image runs."""
        return AUTO if self.requested == AUTO else str(self.choices[0])


def parse_params(
    query: QueryParams,
    models: Mapping[str, ModelInfo],
    default_r: str,
    arrival: float,
    want: OutputKind = "classes",
) -> Params:
    """Read all parameters of a query.

    Args:
        models: by name, the default one first.
        default_r: of requests that name no ``r``; what of it a model cannot do is cut off.
        arrival: when the request's headers arrived, ``time.monotonic()`` seconds.
        want: what the endpoint is for.

    Raises:
        InvalidParameter: one is unknown, repeated, or has a value that is not allowed, or the model
            has no classes.
        NotFound: there is no such model.
    """
    names = [parameter["name"] for parameter in documentation(want)]
    for name in query:
        if name not in names:
            raise invalid(
                name[:40], f"there is no parameter {name[:40]!r} here; there are {', '.join(names)}"
            )
        if len(query.getlist(name)) > 1:
            raise invalid(name, f"{name} is given {len(query.getlist(name))} times")
    model = find_model(
        query.get("model") or None, models
    )  # empty is what a form sends for a field left out
    if want == "classes" and not model.labels:
        raise invalid(
            "model", f"{model.name} has no classifier; it serves /embed and /visualize only"
        )
    return Params(
        model=model,
        choices=parse_choices(query, default_r, model),
        requested=query.get("r", default_r),
        top_k=parse_top_k(query.get("top_k"), len(model.labels)) if want == "classes" else 0,
        deadline=parse_deadline(query.get("deadline_ms") or None, arrival),
        want=want,
    )


def find_model(name: str | None, models: Mapping[str, ModelInfo]) -> ModelInfo:
    """The model called ``name``, or the first one for None. Raises `NotFound`."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise NotFound(
            f"there is no model {name[:80]!r}; there are {', '.join(models)}", parameter="model"
        )
    return models[name]


def parse_top_k(text: str | None, classes: int) -> int:
    """How many classes to answer with. Raises `InvalidParameter`."""
    if text is None:
        return min(DEFAULT_TOP_K, classes)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= classes):
        raise invalid("top_k", f"top_k={text[:40]!r} is not allowed; allowed are 1 to {classes}")
    return int(text)


def parse_deadline(text: str | None, arrival: float) -> float | None:
    """When the answer is worth nothing any more, ``time.monotonic()`` seconds. Raises `InvalidParameter`."""
    if text is None:
        return None
    # float() alone also takes "1_000", "nan", blanks around and digits of other scripts.
    if not re.fullmatch(r"\d{1,12}(\.\d{0,12})?", text, re.ASCII) or float(text) == 0:
        raise invalid(
            "deadline_ms", f"deadline_ms={text[:40]!r} is not allowed; allowed is a positive number"
        )
    return arrival + float(text) / 1000
