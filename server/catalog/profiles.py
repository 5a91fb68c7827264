"""A model's profile: accuracy and speed for each schedule, as ``tome-serve evaluate`` measures and keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """What one schedule gives and costs.

    Attributes:
        accuracy: top-1, in percent.
        tokens: left after the last block.
        images_per_s: median over the batches, forward pass and pixels' way to the device included.
        speedup: the median over the batches of the time at r=0 by the time at this schedule.
    """

    r: str
    accuracy: float
    tokens: int
    relative_flops: float
    images_per_s: float
    speedup: float


def write_profile(path: Path, rows: Sequence[Row], about: Mapping[str, object]) -> None:
    """Keep ``rows`` as JSON, after what ``about`` says of the model, data and machine."""
    try:
        path.write_text(
            json.dumps({**about, "levels": [asdict(row) for row in rows]}, indent=1) + "\n", "utf-8"
        )
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def read_profile(path: Path) -> list[Row]:
    """The rows that `write_profile` wrote. Raises `ConfigError` if ``path`` holds something else."""
    try:
        return [Row(**row) for row in _read(path)["levels"]]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no profile that tome-serve evaluate wrote") from error


def profile_name(path: Path) -> str:
    """The model that a profile is of; raises as `read_profile` does."""
    try:
        return str(_read(path)["model"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no profile that tome-serve evaluate wrote") from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no profile that tome-serve evaluate wrote") from error
