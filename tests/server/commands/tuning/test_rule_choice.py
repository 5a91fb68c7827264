"""The mean speed-up against drawn demands, and the choice of a rule on made-up measurements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.commands.proportions import lower_bound
from server.commands.tuning.rule_choice import (
    RULES_MEASURED,
    MergingRule,
    RuleQuality,
    choose_rule,
    least_qualities,
    mean_speedup,
    next_rule,
)

PAPER = MergingRule("paper", True)
PAIRS = MergingRule("pairs", True)

levels = st.lists(st.tuples(st.floats(0.5, 4), st.floats(0.6, 1)), min_size=1, max_size=6)


@given(levels, st.floats(0.5, 0.95))
def test_it_is_the_mean_over_all_demands(levels: list[tuple[float, float]], lowest: float) -> None:
    speedups = np.array([speedup for speedup, _ in levels])
    qualities = np.array([quality for _, quality in levels])
    demands = np.linspace(lowest, 1, 20_000)
    meets = qualities >= demands[:, None]
    fastest = np.where(meets, speedups, 1.0).max(axis=1, initial=1.0)
    found = mean_speedup(speedups, qualities, lowest)
    assert found == pytest.approx(fastest.mean(), abs=2e-3)


def test_where_nothing_is_lost_it_is_the_largest_speedup() -> None:
    assert mean_speedup(np.array([1.0, 1.5, 1.4]), np.ones(3), 1.0) == 1.5
    # Levels that are slower than r=0 gain nothing.
    assert mean_speedup(np.array([0.9, 0.8]), np.ones(2), 0.5) == 1


def quality(
    agreement: float, speedup: float = 2.0, *, pictures: int = 400, noise: float = 0.02
) -> RuleQuality:
    """r=0, and a level that changes the class of some pictures: those with the last numbers."""
    generator = np.random.default_rng(1)
    agrees: npt.NDArray[np.float64] = (np.arange(pictures) < round(agreement * pictures)).astype(
        float
    )
    factors = generator.normal(1, noise, size=(8, 2))
    return RuleQuality(
        speedups=np.array([1.0, speedup]) * factors,
        qualities=np.stack([np.ones(pictures), agrees], axis=1),
    )


def test_a_rule_that_is_surely_better_is_chosen() -> None:
    choice = choose_rule({PAPER: quality(0.92), PAIRS: quality(0.98)}, PAPER)
    assert choice.rule == PAIRS
    assert choice.certainty is not None
    assert choice.certainty >= 0.95
    assert choice.speedups[PAIRS] > choice.speedups[PAPER]


def test_the_rule_of_the_entry_stays_where_it_is_better() -> None:
    choice = choose_rule({PAIRS: quality(0.98), PAPER: quality(0.92)}, PAIRS)
    assert (choice.rule, choice.certainty) == (PAIRS, None)


def test_a_difference_by_chance_does_not_change_the_rule() -> None:
    better = quality(0.925)
    other = RuleQuality(better.speedups[::-1] + 0.001, better.qualities[::-1])
    choice = choose_rule({PAPER: quality(0.92), PAIRS: other}, PAPER)
    assert choice.speedups[PAIRS] > choice.speedups[PAPER]
    assert (choice.rule, choice.certainty) == (PAPER, None)


def rules_that_differ(kept: int, lost: int) -> dict[MergingRule, RuleQuality]:
    """Of 400 pictures so many keep their class under PAIRS alone, and so many under PAPER alone.

    At the level in the middle; at r=0 all do under both, and at the largest r a half.
    """
    factors = np.random.default_rng(1).normal(1, 0.02, size=(8, 3))
    qualities = np.ones((2, 400, 3))
    qualities[:, 200:, 2] = 0
    qualities[0, :kept, 1] = 0
    qualities[1, kept : kept + lost, 1] = 0
    speedups = np.array([1.0, 2.0, 3.0]) * factors
    return {PAPER: RuleQuality(speedups, qualities[0]), PAIRS: RuleQuality(speedups, qualities[1])}


@pytest.mark.parametrize(
    ("kept", "lost", "rule"),
    [(3, 0, PAPER), (4, 0, PAPER), (5, 0, PAIRS), (9, 3, PAPER), (10, 2, PAIRS), (0, 0, PAPER)],
)
def test_few_pictures_that_differ_are_counted_by_the_sign_test(
    kept: int, lost: int, rule: MergingRule
) -> None:
    """With 95 % certainty: 1 / 2^5 and 79 / 2^12 are below 0.05, 1 / 2^4 and 299 / 2^12 are not."""
    choice = choose_rule(rules_that_differ(kept, lost), PAPER)
    assert choice.rule == rule


def test_a_faster_rule_may_lose_a_few_pictures() -> None:
    measured = rules_that_differ(0, 2)
    faster = replace(measured[PAIRS], speedups=measured[PAIRS].speedups * [1.0, 1.5, 1.5])
    assert choose_rule({**measured, PAIRS: faster}, PAPER).rule == PAIRS


def test_the_least_agreement_is_that_of_the_exact_bound() -> None:
    measured = rules_that_differ(5, 1)
    least = least_qualities(measured[PAIRS], measured[PAPER])
    share = lower_bound(5, 6)
    assert least == pytest.approx([1.0, 1 - 5 / 400 + (2 * share - 1) * 6 / 400, 0.5])
    assert (least <= measured[PAIRS].qualities.mean(axis=0)).all()


def test_cosines_are_compared_by_the_bootstrap_alone() -> None:
    cosines = RuleQuality(np.ones((8, 2)), np.array([[1.0, 0.98], [1.0, 0.97]]))
    lower = replace(cosines, qualities=cosines.qualities - 0.01)
    assert least_qualities(cosines, lower) == pytest.approx(cosines.qualities.mean(axis=0))


def test_few_batches_do_not_change_the_rule() -> None:
    measured = {PAPER: quality(0.92), PAIRS: quality(0.98)}
    few = {rule: replace(each, speedups=each.speedups[:4]) for rule, each in measured.items()}
    choice = choose_rule(few, PAPER)
    assert choice.speedups[PAIRS] > choice.speedups[PAPER]
    assert (choice.rule, choice.certainty) == (PAPER, None)


def test_a_slow_rule_is_not_chosen_for_its_quality() -> None:
    choice = choose_rule({PAPER: quality(0.92), PAIRS: quality(0.98, speedup=0.9)}, PAPER)
    assert choice.rule == PAPER
    assert choice.speedups[PAIRS] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("pairs", "last"), [(0.93, "paper"), (0.98, "pairs")])
def test_the_better_way_of_merging_is_measured_with_the_other_prop_attn(
    pairs: float, last: str
) -> None:
    current = MergingRule("paper", False)
    measured: dict[MergingRule, RuleQuality] = {}
    rules = []
    for agreement in (0.93, pairs, 0.92, 0.95):
        rule = next_rule(measured, current)
        assert rule is not None
        rules.append(rule)
        measured[rule] = quality(agreement)
    assert rules == [current, ("pairs", False), ("nearest", False), (last, True)]
    assert next_rule(measured, current) is None
    assert len(rules) == RULES_MEASURED
