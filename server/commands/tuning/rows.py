"""From the records of all rules to the rows of a profile, and to the rule that is recommended."""

from __future__ import annotations

import statistics

import numpy as np
import numpy.typing as npt

from server.catalog.profiles import ProfileRow
from server.commands.row_qualities import (
    with_agreement,
    with_cosine,
    with_dense_cosine,
    with_exact_agreement,
    with_margin,
)
from server.commands.tuning.rule_choice import MergingRule, RuleQuality
from server.commands.tuning.state import LevelRecord, RuleRecord

_EXACT = "0"


def full_batches(record: RuleRecord) -> list[int]:
    """Return the indices of the batches that count for the speed.

    A last batch that is not full runs at another speed; one that is alone has no other.
    """
    largest = max(record.batch_sizes)
    return [index for index, size in enumerate(record.batch_sizes) if size == largest]


def speedups(record: RuleRecord, level: LevelRecord) -> npt.NDArray[np.float64]:
    """Return the speed-up of each full batch over r=0 under the rule of the entry, ``(K,)``."""
    full = full_batches(record)
    before = np.array(record.baseline_seconds)[full]
    after = np.array(level.seconds)[full]
    return before / after


def rule_quality(record: RuleRecord) -> RuleQuality:
    """Return what the choice of a rule compares: agreement, or cosines without a classifier."""
    exact = record.levels[_EXACT]
    qualities = []
    for level in record.levels.values():
        if level.classes:
            qualities.append(np.equal(level.classes, exact.classes).astype(float))
        else:
            qualities.append(np.array(level.cosines))
    return RuleQuality(
        speedups=np.stack([speedups(record, level) for level in record.levels.values()], axis=1),
        qualities=np.stack(qualities, axis=1),
    )


def profile_rows(rule: MergingRule, record: RuleRecord, *, has_margin: bool) -> list[ProfileRow]:
    """Return the rows of one rule.

    Args:
        rule: that was measured.
        record: of the rule.
        has_margin: whether probabilities of classes say how certain the model is.
    """
    exact = record.levels[_EXACT]
    return [
        _row(rule, record, r, level, exact, has_margin=has_margin)
        for r, level in record.levels.items()
    ]


def _row(
    rule: MergingRule,
    record: RuleRecord,
    r: str,
    level: LevelRecord,
    exact: LevelRecord,
    *,
    has_margin: bool,
) -> ProfileRow:
    seconds = [level.seconds[index] for index in full_batches(record)]
    row = ProfileRow(
        r=r,
        accuracy=None,
        tokens=level.tokens,
        relative_flops=level.relative_flops,
        images_per_s=round(1 / statistics.median(seconds), 1),
        speedup=round(float(np.median(speedups(record, level))), 3),
        merging=rule.merging,
        prop_attn=rule.prop_attn,
    )
    if level.dense_cosines:
        row = with_dense_cosine(row, np.array(level.dense_cosines))
    row = with_cosine(row, np.array(level.cosines))
    if not level.classes:
        return row
    if level is exact:
        return with_exact_agreement(row)
    agrees = np.equal(level.classes, exact.classes)
    row = with_agreement(row, agrees)
    if has_margin:
        row = with_margin(row, np.array(level.margins), agrees)
    return row
