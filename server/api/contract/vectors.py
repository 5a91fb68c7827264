"""The form in which an embedding is returned: its length, and how many of its numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from server.api.contract.parameter_values import invalid_parameter, value_not_allowed
from server.ipc.messages import ModelInfo

OPENAPI_NORMALIZE: dict[str, Any] = {
    "name": "normalize",
    "in": "query",
    "description": "Whether embeddings are scaled to length 1 (L2); default: false.",
    "schema": {"type": "boolean", "default": False},
}
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class VectorForm:
    """How the pooled features of a model are returned.

    Attributes:
        normalize: whether they are scaled to length 1 (L2).
        dimensions: how many of the first numbers are returned; None for all.
    """

    normalize: bool = False
    dimensions: int | None = None

    def apply(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return ``features (D,)`` in this form, float32. Zeros have no direction and stay zeros.

        They are shortened first, so that what is returned has length 1.
        """
        vector = features[: self.dimensions]
        if not self.normalize:
            return vector
        exact = vector.astype(np.float64)  # in which no square of a float32 overflows
        length = np.linalg.norm(exact)
        if length == 0:
            return vector
        return (exact / length).astype(np.float32)


def parse_vector_form(normalize: str | None) -> VectorForm:
    """Return the form that the parameter ``normalize`` asks for. Raises `InvalidParameter`."""
    if normalize is None:
        return VectorForm()
    if normalize.lower() not in _BOOLEANS:
        raise value_not_allowed("normalize", normalize, "allowed are true and false")
    return VectorForm(normalize=_BOOLEANS[normalize.lower()])


def with_dimensions(form: VectorForm, dimensions: Any, model: ModelInfo) -> VectorForm:
    """Return ``form`` with the first ``dimensions`` of the embeddings of ``model``; None for all.

    Raises:
        InvalidParameter: it is no number that is allowed, or ``model`` was not trained for it.
    """
    if dimensions is None:
        return form
    # The type itself, since bool is a subclass of int.
    if type(dimensions) is not int or not 1 <= dimensions <= model.embedding_dim:
        raise invalid_parameter(
            "dimensions",
            f"dimensions must be a whole number from 1 to {model.embedding_dim} for {model.name}",
        )
    if dimensions < model.embedding_dim and not model.matryoshka:
        raise invalid_parameter(
            "dimensions",
            f"the embeddings of {model.name} have {model.embedding_dim} numbers and cannot be"
            " shortened; only those of a model that was trained for it can, whose entry says"
            " matryoshka = true",
        )
    return replace(form, dimensions=dimensions)
