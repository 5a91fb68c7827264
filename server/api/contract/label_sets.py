"""The parameter ``text``: the label set that images are compared with."""

from __future__ import annotations

from typing import Any

from server.api.contract.parameter_values import invalid_parameter, value_not_allowed
from server.ipc.messages import LabelSet, ModelInfo

OPENAPI_TEXT: dict[str, Any] = {
    "name": "text",
    "in": "query",
    "description": (
        "For a model of zero-shot classification: one of the `label_sets` that `/models` lists;"
        " default: the first of them."
    ),
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]+$"},
}


def parse_label_set(text: str, model: ModelInfo) -> LabelSet | None:
    """Return the label set called ``text``; None for the default, which an empty text means too.

    Raises:
        InvalidParameter: the model has no such label set, or none at all.
    """
    if not text:
        return None
    if not model.label_sets:
        raise invalid_parameter(
            "text", f"{model.name} has no label sets; its classes are those of its classifier"
        )
    for label_set in model.label_sets:
        if label_set.name == text:
            return label_set
    known = ", ".join(label_set.name for label_set in model.label_sets)
    raise value_not_allowed("text", text, f"{model.name} has {known}")
