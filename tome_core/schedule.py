"""How many tokens each block merges. Pure Python: a server parses a schedule without torch."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import SupportsIndex

from tome_core.split import tokens_left

# More digits are no token count.
_MOST_DIGITS = 6
_DECIMAL = re.compile(
    r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})(e[+-]?\d{1,3})?",
    re.ASCII | re.IGNORECASE,
)
# How much of a text that is no schedule an error message quotes.
_QUOTED_CHARACTERS = 40
_CACHED_COUNTS = 1024


@dataclass(frozen=True)
class Schedule:
    """One ``r`` per block, in one of three forms; hashable, with a text form.

    Class methods make schedules:

    * ``constant(16)``, text ``16``: the same ``r`` in every block (paper, section 3);
    * ``linear(16, inflection=-1)``, text ``16:-1``: ``r`` changes linearly over the blocks, from 2r
      to 0 for -1, from 0 to 2r for 1 (paper, "decreasing schedule");
    * ``per_layer([30, 0, 5, 20])``, text ``30,0,5,20``: one number per block, 0 in the blocks after
      the list.
    """

    counts: tuple[int, ...]
    inflection: float = 0.0
    explicit: bool = False

    def __post_init__(self) -> None:
        if any(count < 0 for count in self.counts):
            raise ValueError(f"r must not be negative, got {str(self)!r}")
        # This comparison also refuses NaN.
        if not -1 <= self.inflection <= 1:
            raise ValueError(f"the inflection must lie in [-1, 1], got {self.inflection}")

    @classmethod
    def constant(cls, r: SupportsIndex) -> Schedule:
        """Merge ``r`` tokens in every block.

        Raises:
            ValueError: ``r`` is negative.
            TypeError: ``r`` is no integer.
        """
        return cls((_integer(r),))

    @classmethod
    def linear(cls, r: SupportsIndex, inflection: float) -> Schedule:
        """Merge ``r`` tokens on average, changing linearly over the blocks.

        Raises:
            ValueError: ``r`` is negative or ``inflection`` lies outside [-1, 1].
            TypeError: ``r`` is no integer.
        """
        return cls((_integer(r),), float(inflection))

    @classmethod
    def per_layer(cls, counts: Sequence[SupportsIndex]) -> Schedule:
        """Merge ``counts[i]`` tokens in block ``i`` and none in the blocks after the list.

        Raises:
            ValueError: a count is negative.
            TypeError: a count is no integer.
        """
        integers = tuple(_integer(count) for count in counts)
        return cls(integers or (0,), explicit=True)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read the text form: ``16``, ``16:-1`` or ``30,0,5,20``.

        A comma makes one number explicit, too: ``30,``.

        Raises:
            ValueError: ``text`` is no schedule; the message lists the forms.
        """
        try:
            return cls._parse(text)
        except ValueError as error:
            raise ValueError(
                f"{text[:_QUOTED_CHARACTERS]!r} is not a schedule; use a number (16), a number"
                " with an inflection between -1 and 1 (16:-1), or one number per block (30,0,5,20)"
            ) from error

    @classmethod
    def _parse(cls, text: str) -> Schedule:
        if "," in text:
            numbers = text.removesuffix(",").split(",")
            return cls.per_layer([_parse_count(number) for number in numbers])
        if ":" in text:
            r, inflection = text.split(":")
            return cls.linear(_parse_count(r), _parse_decimal(inflection))
        return cls.constant(_parse_count(text))

    @classmethod
    def of(cls, r: SupportsIndex | Schedule) -> Schedule:
        """Return ``r`` itself if it is a schedule, else the constant schedule."""
        return r if isinstance(r, Schedule) else cls.constant(r)

    def __str__(self) -> str:
        if self.explicit:
            numbers = ",".join(map(str, self.counts))
            # Without the comma a single number would read as a constant schedule.
            return numbers + "," if len(self.counts) < 2 else numbers
        r = str(self.counts[0])
        if self.inflection == 0:
            return r
        inflection = f"{self.inflection:g}"
        if float(inflection) != self.inflection:
            inflection = repr(self.inflection)
        return f"{r}:{inflection}"

    def wanted(self, depth: int) -> tuple[int, ...]:
        """Return ``r`` of each of ``depth`` blocks, before it is clamped to what a block can merge.

        Raises:
            ValueError: an explicit list is longer than ``depth``.
        """
        if self.explicit:
            length = len(self.counts)
            if length > depth:
                raise ValueError(
                    f"the schedule has {length} entries, but the model has {depth} blocks"
                )
            return self.counts + (0,) * (depth - length)
        r = self.counts[0]
        if self.inflection == 0 or depth == 1:
            return (r,) * depth
        # As the paper's code does: floor the first value, mirror it at r for the last one, and
        # floor every value on the line between them.
        first = math.floor(r * (1 - self.inflection))
        last = 2 * r - first
        step = (last - first) / (depth - 1)
        return tuple(math.trunc(first + step * block) for block in range(depth))

    def tokens(
        self,
        depth: int,
        tokens: int,
        prefix: int,
    ) -> tuple[int, ...]:
        """Return the tokens of one image at the input and after each block, ``depth + 1`` numbers.

        The counts are those of `tome_core.Bipartite`. With another matcher they may differ:
        `MergedViT.token_counts` asks the model's own.

        Args:
            depth: number of blocks.
            tokens: tokens at the input, prefix tokens included.
            prefix: how many of them are prefix tokens, which never merge.

        Raises:
            ValueError: an explicit list is longer than ``depth``.
        """
        return _tokens(self.wanted(depth), tokens, prefix)


@lru_cache(maxsize=_CACHED_COUNTS)
def _tokens(
    r_of_blocks: tuple[int, ...],
    tokens: int,
    prefix: int,
) -> tuple[int, ...]:
    counts = [tokens]
    for r in r_of_blocks:
        counts.append(tokens_left(counts[-1], r, prefix))
    return tuple(counts)


def _integer(value: SupportsIndex) -> int:
    if isinstance(value, bool):
        raise TypeError("r must be an integer, got a bool")
    return operator.index(value)


def _parse_count(text: str) -> int:
    # int() alone also accepts "1_6", " 16 " and digits of other scripts.
    is_digits = text.isascii() and text.isdigit()
    if not is_digits or len(text) > _MOST_DIGITS:
        raise ValueError(f"{text!r} is not a number")
    return int(text)


def _parse_decimal(text: str) -> float:
    # float() alone also accepts "nan", "0_1", surrounding blanks and digits of other scripts.
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    return float(text)
