"""Cases that are all drawn, however few draws there are for each."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.chaos.oracle import Case


class Deck:
    """Draws each of ``cases`` once, in random order, before any of them again."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._cases = list(cases)
        self._left: list[Case] = []

    def __len__(self) -> int:
        return len(self._cases)

    def draw(self, random: random.Random) -> Case:
        """The next case."""
        if not self._left:
            self._left = random.sample(self._cases, len(self._cases))
        return self._left.pop()
