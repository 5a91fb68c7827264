"""Names of the rules by which tokens merge. Pure Python; the rules are in `tome_core.merging`."""

from __future__ import annotations

from typing import Literal, get_args

RuleName = Literal["paper", "pairs", "nearest"]
RULE_NAMES: tuple[RuleName, ...] = get_args(RuleName)
