"""What has been measured so far, in a file, so that a measurement can go on after an interruption.

The file is written whole and then renamed, so it is complete at any time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from server.commands.tuning.rule_choice import MergingRule
from server.system.files import replace_text

# Least seconds between two writes, and how many times longer than a write they are at least.
SAVE_SECONDS = 1.0
_SHARE_OF_WRITING = 20


@dataclass
class LevelRecord:
    """What was measured under one rule and schedule; lists have one entry for each picture.

    Attributes:
        tokens: left after the last block.
        relative_flops: as a share of those at r=0.
        seconds: of each batch, for one picture.
        classes, margins: the best class, and by how much its probability exceeds the second; empty
            for a model without a classifier.
        cosines, dense_cosines: of the features with those at r=0, pooled and of the patches.
    """

    tokens: int
    relative_flops: float
    seconds: list[float] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    dense_cosines: list[float] = field(default_factory=list)


@dataclass
class RuleRecord:
    """What was measured under one rule.

    Attributes:
        levels: by the text of the schedule.
        read: pictures that are done, or passed over.
        batch_sizes: of each batch.
        baseline_seconds: of each batch at r=0 under the rule of the entry, for one picture.
        unreadable: why pictures cannot be decoded, by their names.
    """

    levels: dict[str, LevelRecord]
    read: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    baseline_seconds: list[float] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> int:
        """The number of pictures that were decoded and run."""
        return sum(self.batch_sizes)


@dataclass
class TuningState:
    """What was measured so far.

    Attributes:
        conditions: device, dtype and threads, once a model was loaded.
        rules: by rule; those that have not begun are missing.
    """

    conditions: dict[str, Any] = field(default_factory=dict)
    rules: dict[MergingRule, RuleRecord] = field(default_factory=dict)


def fingerprint(*parts: object) -> str:
    """Return a hash of what a measurement depends on: ``parts`` that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class StateFile:
    """The file of a `TuningState`.

    Args:
        path: of the file.
        of: the `fingerprint` of the measurement.
        clock: returns seconds.
    """

    def __init__(self, path: Path, of: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._of = of
        self._clock = clock
        self._next_write = 0.0

    def read(self) -> TuningState | None:
        """Return what the file has of this measurement; None if it is of another, or missing."""
        try:
            content = json.loads(self.path.read_text("utf-8"))
            if content["fingerprint"] != self._of:
                return None
            return _parse(content)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, state: TuningState, *, now: bool = False) -> None:
        """Replace the file, unless that was done a moment ago; ``now``: in any case.

        Raises:
            ConfigError: the file cannot be written.
        """
        started = self._clock()
        if started < self._next_write and not now:
            return
        replace_text(self.path, self._text(state))
        ended = self._clock()
        self._next_write = ended + max(SAVE_SECONDS, _SHARE_OF_WRITING * (ended - started))

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)

    def _text(self, state: TuningState) -> str:
        rules = [
            {"merging": rule.merging, "prop_attn": rule.prop_attn, "record": asdict(record)}
            for rule, record in state.rules.items()
        ]
        return json.dumps({"fingerprint": self._of, "conditions": state.conditions, "rules": rules})


def _parse(content: dict[str, Any]) -> TuningState:
    rules = {
        MergingRule(each["merging"], each["prop_attn"]): _parse_rule(each["record"])
        for each in content["rules"]
    }
    return TuningState(content["conditions"], rules)


def _parse_rule(record: dict[str, Any]) -> RuleRecord:
    levels = {r: LevelRecord(**level) for r, level in record.pop("levels").items()}
    return RuleRecord(levels, **record)
