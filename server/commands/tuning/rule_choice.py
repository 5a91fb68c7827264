"""Which rule of merging is best for a model. Pure arithmetic over what was measured.

A rule is as good as the speed-up that it gives at the quality that somebody demands. Nobody knows
the demand, so it is averaged: over all qualities from `LEAST_DEMAND`, or the lowest that was
measured, to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from server.catalog.profiles import rule_text
from server.commands.proportions import lower_bound
from tome_core.rules import RULE_NAMES, RuleName

RULES_MEASURED = len(RULE_NAMES) + 1
# How sure it must be that another rule is better than that of the entry.
_CERTAINTY = 0.95
_RESAMPLES = 400
# Fewer timed batches do not show how much speed varies by chance.
_LEAST_BATCHES = 5
# Nobody demands less than that nine of ten pictures keep their class.
LEAST_DEMAND = 0.9


class MergingRule(NamedTuple):
    """A rule that an entry may name."""

    merging: RuleName
    prop_attn: bool

    def __str__(self) -> str:
        return rule_text(self.merging, self.prop_attn)

    @property
    def label(self) -> str:
        """Its short name in tables and plots."""
        return self.merging if self.prop_attn else f"{self.merging}, no prop_attn"


@dataclass(frozen=True)
class RuleQuality:
    """What was measured under one rule, at each of its levels.

    Attributes:
        speedups: over r=0 of the entry's rule, by each timed batch, ``(K, L)``.
        qualities: of each picture, at most 1: whether its class is that of r=0, or the cosine of
            its features with those at r=0, ``(N, L)``.
    """

    speedups: npt.NDArray[np.float64]
    qualities: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """The rule that is recommended.

    Attributes:
        speedups: the `mean_speedup` of each rule.
        certainty: that ``rule`` is better than the one of the entry, from 0 to 1; None if it is
            the one of the entry.
    """

    rule: MergingRule
    speedups: Mapping[MergingRule, float]
    certainty: float | None


def choose_rule(measured: Mapping[MergingRule, RuleQuality], current: MergingRule) -> Choice:
    """Return the rule of the largest mean speed-up; ``current`` unless another is surely better.

    A bootstrap over pictures and batches, which are the same for all rules, says how sure that is.
    Where few pictures tell two rules apart, it is too sure: three of three that keep their class
    under the new rule alone, and none under the old one alone, are drawn in 95 % of its samples,
    but one of eight pairs of equal rules has such three. So the new rule must also be better with
    the smallest agreement that an exact test leaves it; see `least_qualities`. With fewer than
    `_LEAST_BATCHES` batches the rule is always ``current``.

    Args:
        measured: of each rule, for the same pictures and batches.
        current: the rule of the entry, a key of ``measured``.
    """
    measured_lowest = min(float(each.qualities.mean(axis=0).min()) for each in measured.values())
    lowest = max(LEAST_DEMAND, measured_lowest)
    speedups = {
        rule: mean_speedup(np.median(each.speedups, axis=0), each.qualities.mean(axis=0), lowest)
        for rule, each in measured.items()
    }
    best = max(speedups, key=lambda rule: speedups[rule])
    if best == current or len(measured[current].speedups) < _LEAST_BATCHES:
        return Choice(current, speedups, None)
    gains = _resampled(measured[best], lowest) - _resampled(measured[current], lowest)
    certainty = float((gains > 0).mean())
    least = mean_speedup(
        np.median(measured[best].speedups, axis=0),
        least_qualities(measured[best], measured[current]),
        lowest,
    )
    if certainty < _CERTAINTY or least <= speedups[current]:
        return Choice(current, speedups, None)
    return Choice(best, speedups, certainty)


def least_qualities(measured: RuleQuality, other: RuleQuality) -> npt.NDArray[np.float64]:
    """Return what the agreement at each level is at least, given that of ``other``, ``(L,)``.

    Only the pictures on which the two rules differ say which one is better (the sign test). Of
    these, the share that keeps its class under ``measured`` has the exact lower bound of Clopper
    and Pearson. Cosines differ for every picture, so their means are returned as they are.

    Args:
        measured: of the rule that may be better.
        other: of the other rule, for the same pictures and levels.
    """
    means = measured.qualities.mean(axis=0)
    if not (_is_agreement(measured) and _is_agreement(other)):
        return means
    kept = (measured.qualities > other.qualities).sum(axis=0)
    lost = (measured.qualities < other.qualities).sum(axis=0)
    least = other.qualities.mean(axis=0)
    for level, (better, worse) in enumerate(zip(kept.tolist(), lost.tolist(), strict=True)):
        differing = better + worse
        if differing:
            share = lower_bound(better, differing, 1 - _CERTAINTY)
            least[level] += (2 * share - 1) * differing / len(measured.qualities)
    return least


def _is_agreement(measured: RuleQuality) -> bool:
    """Return whether pictures keep their class or do not, as cosines do not say."""
    return bool(np.isin(measured.qualities, (0, 1)).all())


def next_rule(
    measured: Mapping[MergingRule, RuleQuality], current: MergingRule
) -> MergingRule | None:
    """Return the rule to measure after those that are ``measured``; None if it is enough.

    First come the ways of merging with the ``prop_attn`` of the entry, then the better one of them
    with the other ``prop_attn``.

    Args:
        measured: see `choose_rule`.
        current: the rule of the entry.
    """
    others = [current._replace(merging=name) for name in RULE_NAMES if name != current.merging]
    first = (current, *others)
    for rule in first:
        if rule not in measured:
            return rule
    best = choose_rule({rule: measured[rule] for rule in first}, current).rule
    last = best._replace(prop_attn=not best.prop_attn)
    return None if last in measured else last


def mean_speedup(
    speedups: npt.NDArray[np.float64], qualities: npt.NDArray[np.float64], lowest: float
) -> float:
    """Return the speed-up of the fastest level that is good enough, as a mean over all demands.

    A demand is a quality from ``lowest`` to 1, each as probable. r=0 meets all, at a speed-up of 1.

    Args:
        speedups: of each level over r=0, ``(L,)``.
        qualities: of each level, at most 1, ``(L,)``.
        lowest: at most 1.
    """
    best = 1.0
    upper = 1.0
    total = 0.0
    for index in np.argsort(-qualities):
        quality = float(qualities[index])
        if quality < lowest:
            break
        total += (upper - quality) * best
        upper = quality
        best = max(best, float(speedups[index]))
    if lowest >= 1:
        return best
    total += (upper - lowest) * best
    return total / (1 - lowest)


def _resampled(measured: RuleQuality, lowest: float) -> npt.NDArray[np.float64]:
    """Return the mean speed-ups for pictures and batches drawn anew, the same for every rule."""
    generator = np.random.default_rng(0)
    batches, pictures = len(measured.speedups), len(measured.qualities)
    drawn = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        counts = generator.multinomial(pictures, np.full(pictures, 1 / pictures))
        chosen = generator.integers(batches, size=batches)
        drawn[number] = mean_speedup(
            np.median(measured.speedups[chosen], axis=0),
            counts @ measured.qualities / pictures,
            lowest,
        )
    return drawn
