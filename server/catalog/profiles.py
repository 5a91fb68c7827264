"""Profiles: quality and speed of a model for each schedule.

From ``tome-serve evaluate`` and ``tome-serve tune``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from server.errors import ConfigError
from server.system.files import replace_text
from tome_core.rules import RuleName

COMPARED_WITH = "r=0"  # by speed-ups, agreement and cosines


@dataclass(frozen=True)
class ProfileRow:
    """The quality and the cost of one schedule. None stands for what was not measured.

    Attributes:
        r: text of the schedule.
        accuracy: top-1, in percent; needs labels. Of a sound, by the mean scores of its windows.
        tokens: left after the last block.
        relative_flops: of the forward pass, as a share of those at r=0.
        images_per_s: images, or windows of sounds: the median over the batches, including the copy
            to the device.
        speedup: median over the batches of the time at r=0 divided by the time at this schedule.
        accuracy_low, accuracy_high: the 95 % confidence interval of ``accuracy``, in percent.
        agreement: of the best class with that at r=0, in percent.
        margin: between the two best probabilities, below which an image has to run again at r=0, so
            that its class is that of r=0 in 99.9 % of all cases.
        margin_agreement: the agreement that the measured images do show for ``margin``, in percent.
        second_passes: share of the images below ``margin``, in percent.
        cascade_accuracy: top-1, in percent, where these run again.
        agreement_low, agreement_high: the 95 % confidence interval of ``agreement``, in percent.
        cosine: of the pooled features with those at r=0, from -1 to 1: the mean over the images.
        cosine_low, cosine_high: its 95 % confidence interval.
        cosine_p1, cosine_p5: below these are 1 % and 5 % of the images.
        recall_1, recall_10: of the 1 and 10 images with the closest pooled features at r=0, those
            that are as close among the features at this schedule, in percent: the mean over the
            images. It depends on how many images there are.
        mixed_recall_1, mixed_recall_10: the same where a random half of the features is of r=0.
        dense_cosine: the same of the features of each patch, with their intervals: the mean over
            the patches of an image, and over the images.
        merging, prop_attn: the rule under which this was measured, as in the entry of a model; None
            in profiles that were written without it.
    """

    r: str
    accuracy: float | None
    tokens: int
    relative_flops: float
    images_per_s: float
    speedup: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    agreement: float | None = None
    margin: float | None = None
    margin_agreement: float | None = None
    second_passes: float | None = None
    cascade_accuracy: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    cosine: float | None = None
    cosine_low: float | None = None
    cosine_high: float | None = None
    cosine_p1: float | None = None
    cosine_p5: float | None = None
    recall_1: float | None = None
    recall_10: float | None = None
    mixed_recall_1: float | None = None
    mixed_recall_10: float | None = None
    dense_cosine: float | None = None
    dense_cosine_low: float | None = None
    dense_cosine_high: float | None = None
    merging: RuleName | None = None
    prop_attn: bool | None = None

    def is_of_rule(self, merging: RuleName, prop_attn: bool) -> bool:
        """Return whether it was measured under that rule; True where the profile does not say."""
        known = self.merging is not None and self.prop_attn is not None
        return not known or (self.merging, self.prop_attn) == (merging, prop_attn)


def cascade_speedup(row: ProfileRow) -> float:
    """Return the speed-up over r=0 if the second passes of ``row`` run at r=0."""
    assert row.second_passes is not None
    return 1 / (1 / row.speedup + row.second_passes / 100)


def cascade_rows(rows: Sequence[ProfileRow]) -> list[ProfileRow]:
    """Return the rows that have a margin, with the accuracy and the speed-up of its cascade."""
    return [
        replace(row, accuracy=row.cascade_accuracy, speedup=cascade_speedup(row))
        for row in rows
        if row.cascade_accuracy is not None
    ]


def write_profile(path: Path, rows: Sequence[ProfileRow], metadata: Mapping[str, object]) -> None:
    """Write ``rows`` as JSON, after ``metadata`` of the model, the data and the machine.

    A server that reads the file meanwhile finds the old profile or the new one.

    Raises:
        ConfigError: the file cannot be written.
    """
    levels = [asdict(row) for row in rows]
    content = {**metadata, "compared_with": COMPARED_WITH, "levels": levels}
    text = json.dumps(content, indent=1)
    replace_text(path, text + "\n")


def read_profile(path: Path) -> list[ProfileRow]:
    """Return the rows that `write_profile` wrote.

    Raises:
        ConfigError: ``path`` is no such file.
    """
    try:
        return [ProfileRow(**row) for row in _read_json(path)["levels"]]
    except (KeyError, TypeError) as error:
        raise _not_a_profile(path) from error


def read_accuracies(path: Path) -> dict[str, float]:
    """Return the accuracies by the first rule that has any, by the text of their schedule.

    Raises as `read_profile` does.
    """
    accuracies: dict[str, float] = {}
    rows = [row for row in read_profile(path) if row.accuracy is not None]
    for row in rows:
        if row.merging == rows[0].merging and row.accuracy is not None:
            accuracies[row.r] = row.accuracy
    return accuracies


def read_rule_profile(path: Path, merging: RuleName, prop_attn: bool) -> dict[str, ProfileRow]:
    """Return the rows of one rule, by the text of their schedule.

    Raises:
        ConfigError: ``path`` is no profile, or one of other rules alone.
    """
    rows = read_profile(path)
    chosen = {row.r: row for row in rows if row.is_of_rule(merging, prop_attn)}
    if rows and not chosen:
        rules = {rule_text(row.merging, row.prop_attn) for row in rows}
        raise ConfigError(
            f"{path} was measured under {' and under '.join(sorted(rules))}, but the model merges"
            f" under {rule_text(merging, prop_attn)}; change its entry, or measure it again"
        )
    return chosen


def rule_text(merging: RuleName | None, prop_attn: bool | None) -> str:
    """Return a rule as the entry of a model names it, in one line."""
    return f'merging = "{merging}", prop_attn = {str(prop_attn).lower()}'


def weights_digest(checkpoint: Path) -> str:
    """Return what a profile names the weights in ``checkpoint`` by: 16 digits of their SHA-256.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with checkpoint.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"cannot read {checkpoint}: {error.strerror or error}") from error


def read_conditions(path: Path) -> dict[str, Any]:
    """Return what a profile says besides its rows; raises as `read_profile` does.

    That is the model and its ``weights``, the data, and what speeds depend on.
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        raise _not_a_profile(path)
    return {name: value for name, value in content.items() if name != "levels"}


def profiled_model(path: Path) -> str:
    """Return the name of the model that a profile belongs to; raises as `read_profile` does."""
    try:
        return str(_read_json(path)["model"])
    except (KeyError, TypeError) as error:
        raise _not_a_profile(path) from error


def _read_json(path: Path) -> Any:
    try:
        text = path.read_text("utf-8")
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise _not_a_profile(path) from error


def _not_a_profile(path: Path) -> ConfigError:
    return ConfigError(f"{path} is no profile that tome-serve evaluate or tune wrote")
