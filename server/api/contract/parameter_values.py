"""What the values of parameters have in common: integers, and the errors of values not allowed."""

from __future__ import annotations

from server.errors import InvalidParameter

# Error details quote this many characters of a client's value.
QUOTED_CHARACTERS = 40


def is_integer(text: str, max_digits: int) -> bool:
    """Whether ``text`` is a non-negative decimal integer of at most ``max_digits`` ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= max_digits


def invalid_parameter(parameter: str, detail: str) -> InvalidParameter:
    """Return the error of a ``parameter`` whose value is not allowed."""
    return InvalidParameter(detail, parameter=parameter)


def value_not_allowed(parameter: str, text: str, allowed: str) -> InvalidParameter:
    """Return the error of a ``parameter`` that is ``text``; ``allowed`` says what it may be."""
    quoted = text[:QUOTED_CHARACTERS]
    return invalid_parameter(parameter, f"{parameter}={quoted!r} is not allowed; {allowed}")
