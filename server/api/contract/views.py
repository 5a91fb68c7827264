"""The parameters ``clips`` and ``crops``: which parts of a video the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from server.api.contract.parameter_values import invalid_parameter, is_integer, value_not_allowed
from server.ipc.messages import ModelInfo
from server.media.transforms import VideoTransform

MAX_CLIPS = 16
_MAX_CLIPS_DIGITS = 2
_CROPS: dict[str, Literal[1, 3]] = {"1": 1, "3": 3}

OPENAPI_VIEWS: list[dict[str, Any]] = [
    {
        "name": "clips",
        "in": "query",
        "description": (
            "For a model of video: how many clips of its length are run, spread evenly over the"
            " video; default: `clips` in `/models`."
        ),
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_CLIPS},
    },
    {
        "name": "crops",
        "in": "query",
        "description": (
            "For a model of video: 1 crop from the middle of each clip, or 3 along its longer side;"
            " default: `crops` in `/models`. Each crop of a clip is one window."
        ),
        "schema": {"type": "integer", "enum": list(_CROPS.values())},
    },
]


@dataclass(frozen=True)
class Views:
    """The clips of a video, and the crops of each clip; None where the model's own are run."""

    clips: int | None = None
    crops: Literal[1, 3] | None = None


def parse_views(query: Mapping[str, str], model: ModelInfo, max_windows: int) -> Views:
    """Return the values of ``clips`` and ``crops``.

    Args:
        query: the query parameters.
        max_windows: most clips times crops.

    Raises:
        InvalidParameter: a value is not allowed, both together are too many, or ``model`` does not
            take videos.
    """
    # An HTML form sends an empty value for a field left blank.
    given = {name: query[name] for name in ("clips", "crops") if query.get(name)}
    transform = model.transform
    if isinstance(transform, VideoTransform):
        views = Views(_parse_clips(given.get("clips")), _parse_crops(given.get("crops")))
        _check_windows(views, transform, max_windows)
        return views
    for name in given:
        takes = f"{model.modality.noun}s"
        raise invalid_parameter(name, f"{name} are parts of a video; {model.name} takes {takes}")
    return Views()


def _parse_clips(text: str | None) -> int | None:
    if text is None:
        return None
    if is_integer(text, _MAX_CLIPS_DIGITS) and 1 <= int(text) <= MAX_CLIPS:
        return int(text)
    raise value_not_allowed("clips", text, f"allowed are 1 to {MAX_CLIPS}")


def _parse_crops(text: str | None) -> Literal[1, 3] | None:
    if text is None:
        return None
    if text in _CROPS:
        return _CROPS[text]
    raise value_not_allowed("crops", text, f"allowed are {' and '.join(_CROPS)}")


def _check_windows(views: Views, transform: VideoTransform, max_windows: int) -> None:
    clips = views.clips or transform.clips
    crops = views.crops or transform.crops
    if clips * crops > max_windows:
        parameter = "crops" if views.clips is None and views.crops else "clips"
        raise invalid_parameter(
            parameter,
            f"clips={clips} and crops={crops} make {clips * crops} windows; allowed are"
            f" {max_windows}",
        )
