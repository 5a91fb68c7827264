"""Profiles: accuracy and speed of a model for each schedule, from ``tome-serve evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.errors import ConfigError


@dataclass(frozen=True)
class ProfileRow:
    """The accuracy and the cost of one schedule.

    Attributes:
        r: text of the schedule.
        accuracy: top-1, in percent. Of a sound, by the mean scores of its windows.
        tokens: left after the last block.
        relative_flops: of the forward pass, as a share of those at r=0.
        images_per_s: images, or windows of sounds: the median over the batches, including the copy
            to the device.
        speedup: median over the batches of the time at r=0 divided by the time at this schedule.
        accuracy_low, accuracy_high: the 95 % confidence interval of ``accuracy``, in percent; None
            in profiles that were written without it.
    """

    r: str
    accuracy: float
    tokens: int
    relative_flops: float
    images_per_s: float
    speedup: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None


def write_profile(path: Path, rows: Sequence[ProfileRow], metadata: Mapping[str, object]) -> None:
    """Write ``rows`` as JSON, after ``metadata`` of the model, the data and the machine.

    Raises:
        ConfigError: the file cannot be written.
    """
    levels = [asdict(row) for row in rows]
    text = json.dumps({**metadata, "levels": levels}, indent=1)
    try:
        path.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def read_profile(path: Path) -> list[ProfileRow]:
    """Return the rows that `write_profile` wrote.

    Raises:
        ConfigError: ``path`` is no such file.
    """
    try:
        return [ProfileRow(**row) for row in _read_json(path)["levels"]]
    except (KeyError, TypeError) as error:
        raise _not_a_profile(path) from error


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
    return ConfigError(f"{path} is no profile that tome-serve evaluate wrote")
