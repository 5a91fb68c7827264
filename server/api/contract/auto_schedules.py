"""The levels of a model that ``r=auto`` may choose from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.api.contract.parameter_values import invalid_parameter, is_integer, value_not_allowed
from server.ipc.messages import Level, ModelInfo
from tome_core.schedule import Schedule

AUTO = "auto"

_MAX_R_DIGITS = 6  # int() of a very long number is slow, and Python refuses it
_DECIMAL = re.compile(r"\d{1,3}(\.\d{0,12})?", re.ASCII)


@dataclass(frozen=True)
class Quality:
    """What a profile says of the quality of a level.

    Attributes:
        of: returns it; None where the profile does not have it.
        of_cascade: the same with the second passes that the profile was measured with.
        command: measures it.
        is_percentage: or a cosine, which is 1 at most.
    """

    name: str
    of: Callable[[Level], float | None]
    of_cascade: Callable[[Level], float | None]
    command: str
    is_percentage: bool = True

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{value:g}%" if self.is_percentage else f"{value:g}"

    def counted(self, level: Level, *, runs_again: bool) -> float | None:
        """Return what counts for a bound: with second passes where the profile shows that.

        Args:
            runs_again: whether the request has such second passes.
        """
        of_cascade = self.of_cascade(level) if runs_again else None
        return self.of(level) if of_cascade is None else of_cascade


def _accuracy(level: Level) -> float | None:
    return level.accuracy


def _cascade_accuracy(level: Level) -> float | None:
    return level.cascade_accuracy


def _least_agreement(level: Level) -> float | None:
    return level.agreement if level.agreement_low is None else level.agreement_low


def _cascade_agreement(level: Level) -> float | None:
    return level.margin_agreement


def _least_cosine(level: Level) -> float | None:
    return level.cosine if level.cosine_low is None else level.cosine_low


def _unknown(level: Level) -> float | None:
    return None


def _never(level: Level) -> bool:
    return False


# By the parameters that bound it.
QUALITIES = {
    "min_accuracy": Quality(
        "accuracy", _accuracy, _cascade_accuracy, "tome-serve evaluate --profile"
    ),
    "min_agreement": Quality("agreement", _least_agreement, _cascade_agreement, "tome-serve tune"),
    # Second passes are for classes alone.
    "min_fidelity": Quality(
        "fidelity",
        _least_cosine,
        _unknown,
        "tome-serve evaluate --task embed --profile",
        is_percentage=False,
    ),
}


def parse_auto_schedules(
    r_max: str | None,
    minima: Mapping[str, str | None],
    model: ModelInfo,
    runs_again: Callable[[Level], bool] = _never,
) -> tuple[Schedule, ...]:
    """Return the levels of ``model`` that ``r=auto`` may choose, the one that merges least first.

    Args:
        r_max: the text of the parameter, as the following; None where it is not given.
        minima: by the name of the parameter, a key of `QUALITIES`.
        model: the model that the request names.
        runs_again: whether uncertain images of a level run again at least as often as those that
            its profile was measured on.

    Raises:
        InvalidParameter: a bound is malformed, or no level meets all of them.
    """
    largest_r = parse_r_max(r_max, model)
    levels = [level for level in model.levels if Schedule.parse(level.r).counts[0] <= largest_r]
    for parameter, text in minima.items():
        lowest = parse_bound(text, parameter)
        if lowest is not None:
            levels = select_levels(levels, lowest, parameter, model, runs_again)
    return tuple(Schedule.parse(level.r) for level in drop_slow_levels(levels))


def drop_slow_levels(levels: Sequence[Level]) -> list[Level]:
    """Return the ``levels`` that are faster than every level that merges less, least merging first.

    Merging costs time too: a level may be slower than r=0, or than a level that merges less, and
    then it has no advantage. A level without a measurement stays.
    """
    useful: list[Level] = []
    best_speedup = -math.inf
    for level in sorted(levels, key=_negative_flops):
        if level.speedup is None:
            useful.append(level)
        elif level.speedup > best_speedup:
            useful.append(level)
            best_speedup = level.speedup
    return useful


def _negative_flops(level: Level) -> float:
    return -level.relative_flops


def select_levels(
    levels: list[Level],
    lowest: float,
    parameter: str,
    model: ModelInfo,
    runs_again: Callable[[Level], bool],
) -> list[Level]:
    """Return the ``levels`` with a quality of at least ``lowest``.

    Args:
        parameter: the name of the bound, a key of `QUALITIES`.
        runs_again: see `parse_auto_schedules`.

    Raises:
        InvalidParameter: no level has it, or the profile of ``model`` does not have this quality.
    """
    quality = QUALITIES[parameter]
    known = []
    for level in levels:
        value = quality.counted(level, runs_again=runs_again(level))
        if value is not None:
            known.append((level, value))
    if not known:
        raise invalid_parameter(
            parameter,
            f"{model.name} has no profile of its {quality.name}; `{quality.command}` writes one",
        )
    highest = max(value for _, value in known)
    if highest < lowest:
        raise invalid_parameter(
            parameter,
            f"the best of the allowed levels of {model.name} reaches {quality.text(highest)}",
        )
    return [level for level, value in known if value >= lowest]


def parse_r_max(text: str | None, model: ModelInfo) -> float:
    """Return the largest ``r`` to choose, infinity without a bound. Raises `InvalidParameter`."""
    if text is None:
        return math.inf
    if is_integer(text, _MAX_R_DIGITS) and int(text) <= model.r_max:
        return int(text)
    raise value_not_allowed("r_max", text, f"allowed are 0 to {model.r_max}")


def parse_bound(text: str | None, parameter: str) -> float | None:
    """Return a bound of a quality, or None without one. Raises `InvalidParameter`.

    Args:
        parameter: the name of the bound, a key of `QUALITIES`.
    """
    if text is None:
        return None
    most, allowed = 1, "allowed is a mean cosine, 0 to 1"
    if QUALITIES[parameter].is_percentage:
        most, allowed = 100, "allowed is a percentage, 0 to 100"
    # float() alone also accepts "9_0", "nan", surrounding blanks and digits of other scripts.
    if _DECIMAL.fullmatch(text) and float(text) <= most:
        return float(text)
    raise value_not_allowed(parameter, text, allowed)
