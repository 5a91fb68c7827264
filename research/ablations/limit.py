"""How many tokens are left: the same for all matchers that are compared at one ``r``."""

from __future__ import annotations

from tome_core.split import tokens_left


class AtMostHalf:
    """A matcher that removes ``r`` tokens, as `tome_core.Bipartite` does."""

    def remaining(self, tokens: int, r: int, prefix: int) -> int:
        """``tokens - r``, but never more than half of the mergeable tokens go."""
        return tokens_left(tokens, r, prefix)
