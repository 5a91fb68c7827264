"""From the records of all rules to the rows of a profile, and to the rule that is recommended."""

from __future__ import annotations

import numpy as np

from server.catalog.profiles import ProfileRow
from server.commands.row_qualities import (
    with_agreement,
    with_cosine,
    with_dense_cosine,
    with_exact_agreement,
    with_exact_cosine,
    with_margin,
)
from server.commands.speeds import images_per_second, speedups
from server.commands.tuning.rule_choice import MergingRule, RuleQuality
from server.commands.tuning.state import LevelRecord, RuleRecord

_EXACT = "0"


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
        speedups=np.stack(
            [
                speedups(record.batch_sizes, record.baseline_seconds, level.seconds)
                for level in record.levels.values()
            ],
            axis=1,
        ),
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
    sizes = record.batch_sizes
    speedup = np.median(speedups(sizes, record.baseline_seconds, level.seconds))
    row = ProfileRow(
        r=r,
        accuracy=None,
        tokens=level.tokens,
        relative_flops=level.relative_flops,
        images_per_s=round(images_per_second(sizes, level.seconds), 1),
        speedup=round(float(speedup), 3),
        merging=rule.merging,
        prop_attn=rule.prop_attn,
    )
    if level.dense_cosines:
        row = with_dense_cosine(row, np.array(level.dense_cosines))
    row = with_exact_cosine(row) if level is exact else with_cosine(row, np.array(level.cosines))
    if not level.classes:
        return row
    if level is exact:
        return with_exact_agreement(row)
    agrees = np.equal(level.classes, exact.classes)
    row = with_agreement(row, agrees)
    if has_margin:
        row = with_margin(row, np.array(level.margins), agrees)
    return row
