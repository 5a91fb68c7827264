"""The parameter ``windows``: which windows of a sound or video count, and what is returned."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from server.api.contract.parameter_values import invalid_parameter, value_not_allowed
from server.ipc.messages import ModelInfo, OutputKind
from server.media.modality import Modality


class Windows(StrEnum):
    """Which windows of a sound, or of a video, count.

    Attributes:
        FIRST: the first one alone is run; of a video the first crop of the first clip.
        MEAN: all are run; the answer is the mean over them.
        EACH: as ``MEAN``, and the answer of each.
    """

    FIRST = "first"
    MEAN = "mean"
    EACH = "each"


_CHOICES = (Windows.FIRST, Windows.MEAN, Windows.EACH)
# Pictures have no mean.
_CHOICES_OF_PICTURES = (Windows.FIRST, Windows.EACH)

_DESCRIPTION = (
    "For a model of sound or video: the answer of the `first` window of its length alone, the"
    " `mean` over all windows, or that of `each` as well. Of a video each crop of a clip is one."
)
_PICTURE_DESCRIPTION = (
    "For a model of sound or video: a picture of the `first` window of its length, or of `each`,"
    " one below the other."
)


def allowed_windows(output_kind: OutputKind) -> tuple[Windows, ...]:
    """Return the values for an endpoint whose output is ``output_kind``."""
    return _CHOICES_OF_PICTURES if output_kind == "source" else _CHOICES


def default_windows(output_kind: OutputKind) -> Windows:
    """Return the value of a request that gives none."""
    return Windows.FIRST if output_kind == "source" else Windows.MEAN


def openapi_windows(output_kind: OutputKind) -> dict[str, Any]:
    """Return the OpenAPI parameter of an endpoint whose output is ``output_kind``."""
    description = _PICTURE_DESCRIPTION if output_kind == "source" else _DESCRIPTION
    return {
        "name": "windows",
        "in": "query",
        "description": description,
        "schema": {
            "type": "string",
            "enum": [str(choice) for choice in allowed_windows(output_kind)],
            "default": str(default_windows(output_kind)),
        },
    }


def parse_windows(text: str | None, model: ModelInfo, output_kind: OutputKind) -> Windows:
    """Return the value of ``windows``, or the default for None. Raises `InvalidParameter`."""
    if text is None:
        return default_windows(output_kind)
    if model.modality is Modality.IMAGE:
        raise invalid_parameter(
            "windows", f"windows are parts of a sound or a video; {model.name} takes images"
        )
    allowed = allowed_windows(output_kind)
    if text not in allowed:
        raise value_not_allowed("windows", text, f"allowed are {', '.join(allowed)}")
    return Windows(text)
