"""The query parameters of the image endpoints, parsed and checked against the requested model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from starlette.datastructures import QueryParams

from server.api.contract.auto_schedules import AUTO, QUALITIES, parse_auto_schedules
from server.api.contract.confidence import (
    Confidence,
    parse_confidence,
    runs_again_as_profiled,
)
from server.api.contract.label_sets import parse_label_set
from server.api.contract.openapi_parameters import DEFAULT_TOP_K, PARAMETER_NAMES
from server.api.contract.parameter_values import (
    QUOTED_CHARACTERS,
    invalid_parameter,
    is_integer,
    value_not_allowed,
)
from server.api.contract.vectors import VectorForm, parse_vector_form
from server.api.contract.views import Views, parse_views
from server.api.contract.windows import Windows, parse_windows
from server.errors import InvalidParameter, NotFound
from server.ipc.messages import LabelSet, ModelInfo, OutputKind
from server.media.limits import VideoLimits
from server.media.modality import Modality
from server.media.transforms import Transform, VideoTransform
from tome_core.schedule import Schedule

_MAX_TOP_K_DIGITS = 9
_QUOTED_MODEL_CHARACTERS = 80  # model names are longer than other values
_MILLISECONDS = re.compile(r"\d{1,12}(\.\d{0,12})?", re.ASCII)
# Of no meaning for an image.
_MEDIA_PARAMETERS = ("windows", "clips", "crops")


@dataclass(frozen=True)
class Params:
    """The parsed parameters of one request.

    Attributes:
        choices: the requested schedule; with ``r=auto`` those the scheduler may choose from, the
            one that merges least first.
        requested_r: the text of ``r`` as the client sent it, or the default.
        top_k: how many classes to return; 0 for an output other than classes.
        deadline: ``time.monotonic()`` seconds, or None.
        windows: which windows of a sound or video count; of no meaning for an image.
        views: the clips and crops of a video.
        confidence: which images run again; None if none does.
        vectors: the form of embeddings.
        label_set: the labels that images are compared with; None for the default, or a model
            without label sets.
        answer_top_k: how many classes the engine returns: two at least show how certain it is.
        labels: of the classes from which the engine returns the best.
        label_set_name: as of `Job`.
    """

    model: ModelInfo
    choices: tuple[Schedule, ...]
    requested_r: str
    top_k: int
    deadline: float | None
    windows: Windows = Windows.MEAN
    views: Views = field(default_factory=Views)
    confidence: Confidence | None = None
    vectors: VectorForm = field(default_factory=VectorForm)
    label_set: LabelSet | None = None
    answer_top_k: int = field(init=False)
    labels: tuple[str, ...] = field(init=False)
    label_set_name: str = field(init=False)

    def __post_init__(self) -> None:
        least = 0 if self.confidence is None else 2
        object.__setattr__(self, "answer_top_k", max(self.top_k, least))
        name, labels = self.label_set or LabelSet("", self.model.labels)
        object.__setattr__(self, "label_set_name", name)
        object.__setattr__(self, "labels", labels)

    @property
    def transform(self) -> Transform:
        """The model's transform, with the clips and crops that the request names."""
        transform = self.model.transform
        if not isinstance(transform, VideoTransform):
            return transform
        return replace(
            transform,
            clips=self.views.clips or transform.clips,
            crops=self.views.crops or transform.crops,
        )

    @cached_property
    def text(self) -> str:
        """The normal form of ``r``, or ``auto`` until the scheduler has chosen."""
        return AUTO if self.requested_r == AUTO else str(self.choices[0])


def parse_params(
    query: QueryParams,
    models: Mapping[str, ModelInfo],
    default_r: str,
    arrival: float,
    output_kind: OutputKind = "classes",
    max_views: int = VideoLimits.max_windows,
) -> Params:
    """Parse all parameters of a query.

    Args:
        query: the query parameters.
        models: by name, the default one first.
        default_r: ``r`` of a request that names none; clamped to what the model supports.
        arrival: when the request's headers arrived, ``time.monotonic()`` seconds.
        output_kind: the output of the endpoint.
        max_views: most clips times crops of a video.

    Raises:
        InvalidParameter: a parameter is unknown, repeated, or has a value that is not allowed, or
            the model has no classes.
        NotFound: there is no such model.
    """
    check_names(query, output_kind)
    # An HTML form sends an empty value for a field left blank.
    model = find_model(query.get("model") or None, models)
    if output_kind == "classes" and not model.labels:
        raise invalid_parameter(
            "model",
            f"{model.name} has no classifier; it serves /embed, /visualize, /v1/embeddings and /v2"
            " only",
        )
    choices = parse_schedules(query, default_r, model)
    label_set = None
    if "text" in query:
        label_set = parse_label_set(query["text"], model)
    top_k = 0
    if output_kind == "classes":
        labels = model.labels if label_set is None else label_set.labels
        top_k = parse_top_k(query.get("top_k"), len(labels))
    # Requests of images, the most frequent, do not enter the modules of these parameters.
    windows = Windows.MEAN
    views = Views()
    has_windows = model.modality is not Modality.IMAGE
    if has_windows or any(name in query for name in _MEDIA_PARAMETERS):
        windows = parse_windows(query.get("windows") or None, model, output_kind)
        views = parse_views(query, model, max_views)
    return Params(
        model=model,
        choices=choices,
        requested_r=query.get("r", default_r),
        top_k=top_k,
        deadline=parse_deadline(query.get("deadline_ms") or None, arrival),
        confidence=_parse_confidence(query, choices, model),
        windows=windows,
        views=views,
        vectors=parse_vector_form(query.get("normalize") or None),
        label_set=label_set,
    )


def _parse_confidence(
    query: Mapping[str, str], choices: tuple[Schedule, ...], model: ModelInfo
) -> Confidence | None:
    text, second = _second_pass(query, model)
    if text is None and second is None:
        return None
    return parse_confidence(text, second, choices, model)


def _second_pass(query: Mapping[str, str], model: ModelInfo) -> tuple[str | None, Schedule | None]:
    """Return the text of ``confidence`` and the schedule of ``confidence_r``, None without them."""
    text = query.get("confidence") or None
    second = query.get("confidence_r") or None
    return text, None if second is None else parse_r(second, model, "confidence_r")


def check_names(query: QueryParams, output_kind: OutputKind) -> None:
    """Check that every parameter is known and given once. Raises `InvalidParameter`."""
    names = PARAMETER_NAMES[output_kind]
    for name in query:
        if name not in names:
            quoted = name[:QUOTED_CHARACTERS]
            known = ", ".join(names)
            raise invalid_parameter(
                quoted, f"there is no parameter {quoted!r} here; there are {known}"
            )
        count = len(query.getlist(name))
        if count > 1:
            raise invalid_parameter(name, f"{name} is given {count} times")


def find_model(name: str | None, models: Mapping[str, ModelInfo]) -> ModelInfo:
    """Return the model of that name or alias, or the default model for None. Raises `NotFound`."""
    if name is None:
        return next(iter(models.values()))
    if name in models:
        return models[name]
    for model in models.values():
        if name in model.aliases:
            return model
    quoted = name[:_QUOTED_MODEL_CHARACTERS]
    aliases = [alias for model in models.values() for alias in model.aliases]
    known = ", ".join([*models, *aliases])
    raise NotFound(f"there is no model {quoted!r}; there are {known}", parameter="model")


def parse_schedules(
    query: Mapping[str, str], default_r: str, model: ModelInfo
) -> tuple[Schedule, ...]:
    """Return the schedules that a request allows, the one that merges least first.

    Args:
        query: the query parameters.
        default_r: ``r`` of a request that names none; clamped to what ``model`` supports.
        model: the model that the request names.

    Raises:
        InvalidParameter: a value is malformed, or ``model`` does not support it.
    """
    r = query.get("r", default_r)
    # An HTML form sends an empty value for a field left blank.
    r_max = query.get("r_max") or None
    minima = {parameter: query.get(parameter) or None for parameter in QUALITIES}
    if r == AUTO:
        text, second = _second_pass(query, model)
        runs_again = partial(runs_again_as_profiled, text=text, second=second)
        return parse_auto_schedules(r_max, minima, model, runs_again)
    for parameter, bound in {"r_max": r_max, **minima}.items():
        if bound is not None:
            raise _auto_only(parameter, r)
    if "r" in query:
        return (parse_r(r, model),)
    return (clamp_schedule(Schedule.parse(default_r), model),)


def parse_r(text: str, model: ModelInfo, name: str = "r") -> Schedule:
    """Return the schedule of a client's ``r``, or of another parameter called ``name``.

    Raises:
        InvalidParameter: ``text`` is no schedule, or ``model`` does not support it.
    """
    try:
        schedule = Schedule.parse(text)
    except ValueError:
        raise _not_a_schedule(text, model, name) from None
    largest = max(schedule.counts)
    if largest > model.r_max:
        raise invalid_parameter(
            name,
            f"{name}={largest} is too large for {model.name}; allowed are 0 to {model.r_max}",
        )
    length = len(schedule.counts)
    if schedule.explicit and length > model.depth:
        raise invalid_parameter(
            name, f"{name} lists {length} numbers; {model.name} has {model.depth} blocks"
        )
    return schedule


def clamp_schedule(schedule: Schedule, model: ModelInfo) -> Schedule:
    """Return ``schedule`` cut to what ``model`` supports: one default has to suit every model."""
    counts = tuple(min(count, model.r_max) for count in schedule.counts)
    return Schedule(counts[: model.depth], schedule.inflection, schedule.explicit)


def parse_top_k(text: str | None, classes: int) -> int:
    """Return how many classes to return. Raises `InvalidParameter`."""
    if text is None:
        return min(DEFAULT_TOP_K, classes)
    if is_integer(text, _MAX_TOP_K_DIGITS) and 1 <= int(text) <= classes:
        return int(text)
    raise value_not_allowed("top_k", text, f"allowed are 1 to {classes}")


def parse_deadline(text: str | None, arrival: float) -> float | None:
    """Return the deadline in ``time.monotonic()`` seconds, or None. Raises `InvalidParameter`."""
    if text is None:
        return None
    # float() alone also accepts "1_000", "nan", surrounding blanks and digits of other scripts.
    if _MILLISECONDS.fullmatch(text) and float(text) > 0:
        return arrival + float(text) / 1000
    raise value_not_allowed("deadline_ms", text, "allowed is a positive number")


def _not_a_schedule(text: str, model: ModelInfo, name: str) -> InvalidParameter:
    return invalid_parameter(
        name,
        f"{name}={text[:QUOTED_CHARACTERS]!r} is not a schedule; allowed are a number from 0 to"
        f" {model.r_max} (16), a number with an inflection from -1 to 1 (16:-1), up to"
        f" {model.depth} numbers, one per block (30,0,5,20)" + (", or auto" if name == "r" else ""),
    )


def _auto_only(parameter: str, r: str) -> InvalidParameter:
    return invalid_parameter(
        parameter,
        f"{parameter} bounds what r=auto chooses;"
        f" with r={r[:QUOTED_CHARACTERS]} there is nothing to choose",
    )
