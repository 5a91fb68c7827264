"""How many tokens each block merges away. Pure Python: a server can parse and price a request without torch."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import SupportsIndex


@dataclass(frozen=True)
class Schedule:
    """One ``r`` per block, in one of the paper's forms; made by a class method, hashable, with a text form.

    * ``constant(16)``, text ``16``: the same ``r`` in every block (paper, section 3);
    * ``linear(16, inflection=-1)``, text ``16:-1``: ``r`` changes linearly over the blocks, from 2r
    to 0 for -1, from
      0 to 2r for 1 (paper, "decreasing schedule");
    * ``per_layer([30, 0, 5, 20])``, text ``30,0,5,20``: an explicit list, 0 in the blocks it does
    not reach.
    """

    counts: tuple[int, ...]
    inflection: float = 0.0
    explicit: bool = False

    def __post_init__(self) -> None:
        if any(count < 0 for count in self.counts):
            raise ValueError(f"r must not be negative, got {str(self)!r}")
        if not -1 <= self.inflection <= 1:  # also refuses NaN
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
        """
        return cls((_integer(r),), float(inflection))

    @classmethod
    def per_layer(cls, counts: Sequence[SupportsIndex]) -> Schedule:
        """Merge ``counts[i]`` tokens in block ``i`` and none in the blocks after.

        Raises:
            ValueError: a count is negative.
            TypeError: a count is no integer.
        """
        return cls(tuple(_integer(count) for count in counts) or (0,), explicit=True)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read the text form: ``16``, ``16:-1`` or ``30,0,5,20`` (one number with a comma, ``30,``, is explicit too).

        Raises:
            ValueError: ``text`` is none of these; the message says what is.
        """
        try:
            if "," in text:
                return cls.per_layer([_digits(part) for part in text.removesuffix(",").split(",")])
            if ":" in text:
                r, inflection = text.split(":")
                return cls.linear(_digits(r), _decimal(inflection))
            return cls.constant(_digits(text))
        except ValueError as error:
            raise ValueError(
                f"{text[:40]!r} is not a schedule; use a number (16), a number with an inflection"
                " between -1 and 1 (16:-1), or one number per block (30,0,5,20)"
            ) from error

    @classmethod
    def of(cls, r: SupportsIndex | Schedule) -> Schedule:
        """``r`` itself if it is a schedule, else the constant one."""
        return r if isinstance(r, Schedule) else cls.constant(r)

    def __str__(self) -> str:
        if self.explicit:
            return ",".join(map(str, self.counts)) + ("," if len(self.counts) < 2 else "")
        if not self.inflection:
            return str(self.counts[0])
        short = f"{self.inflection:g}"
        return f"{self.counts[0]}:{short if float(short) == self.inflection else repr(self.inflection)}"

    def wanted(self, depth: int) -> tuple[int, ...]:
        """``r`` of each of ``depth`` blocks, before the limit that the number of tokens sets.

        Raises:
            ValueError: an explicit list is longer than ``depth``.
        """
        if self.explicit:
            if len(self.counts) > depth:
                raise ValueError(
                    f"the schedule has {len(self.counts)} entries, but the model has {depth} blocks"
                )
            return self.counts + (0,) * (depth - len(self.counts))
        r = self.counts[0]
        if not self.inflection or depth == 1:
            return (r,) * depth
        # The paper's floors: the first value is floored, and so is every value on the line to 2r
        # minus the first.
        low = math.floor(r * (1 - self.inflection))
        step = (2 * r - 2 * low) / (depth - 1)
        return tuple(math.trunc(low + step * i) for i in range(depth))

    def tokens(self, depth: int, tokens: int, prefix: int) -> tuple[int, ...]:
        """Token counts of one image: at the input, and after each of ``depth`` blocks (``depth + 1`` numbers).

        Args:
            tokens: tokens at the input, prefix tokens included.
            prefix: how many of them are prefix tokens, which never merge.

        Raises:
            ValueError: an explicit list is longer than ``depth``.
        """
        return _tokens(self.wanted(depth), tokens, prefix)


def most_mergeable(tokens: int, prefix: int) -> int:
    """The most tokens that one block can merge away: half of those that are no prefix tokens (paper, section 3)."""
    return (tokens - prefix) // 2


@lru_cache(maxsize=1024)
def _tokens(wanted: tuple[int, ...], tokens: int, prefix: int) -> tuple[int, ...]:
    counts = [tokens]
    for r in wanted:
        counts.append(counts[-1] - min(r, most_mergeable(counts[-1], prefix)))
    return tuple(counts)


def _integer(value: SupportsIndex) -> int:
    if isinstance(value, bool):
        raise TypeError("r must be an integer, got a bool")
    return operator.index(value)


def _digits(text: str) -> int:
    # int() alone also takes "1_6", " 16 " and digits of other scripts; more than 6 digits is no
    # token count.
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise ValueError(f"{text!r} is not a number")
    return int(text)


def _decimal(text: str) -> float:
    # float() alone also takes "nan", "0_1", blanks around and digits of other scripts.
    if not re.fullmatch(
        r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})(e[+-]?\d{1,3})?", text, re.ASCII | re.IGNORECASE
    ):
        raise ValueError(f"{text!r} is not a number")
    return float(text)
