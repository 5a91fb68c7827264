"""What a reload of the catalog found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class ReloadResult(StrEnum):
    """How a reload ended: the label of ``tome_reloads_total``."""

    LOADED = "loaded"  # other engines serve now
    ALIASES = "aliases"  # models have other names now, and nothing was loaded
    UNCHANGED = "unchanged"
    FAILED = "failed"  # those of before serve on


@dataclass(frozen=True)
class ReloadReport:
    """One reload that has ended.

    Attributes:
        reason: why it failed, one sentence for the operator; empty if it did not.
        models: the names of the served models, the default first.
        aliases: by the further name, the name of its model.
        seconds: that it took.
    """

    result: ReloadResult
    reason: str
    models: tuple[str, ...]
    aliases: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class ReloadStatus:
    """What the parent process says of reloads.

    Attributes:
        running: whether one has begun and not ended.
        last: the last one that has ended; None if there was none.
    """

    running: bool = False
    last: ReloadReport | None = None
