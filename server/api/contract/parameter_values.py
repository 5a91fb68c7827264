"""What the values of parameters have in common: integers, and the errors of values not allowed."""

from __future__ import annotations

from typing import Any

from server.errors import InvalidParameter

# Error details quote this many characters of a client's value.
QUOTED_CHARACTERS = 40

_MAX_EXACT_INTEGER = 1e15  # integers below are exact as floats


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


def parameter_text(name: str, value: Any) -> str:
    """Return a JSON value as it would stand in a query. Raises `InvalidParameter`."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidParameter(f"{name} must be a number or a string", parameter=name)
    if isinstance(value, float) and value.is_integer() and abs(value) < _MAX_EXACT_INTEGER:
        return str(int(value))
    return str(value)
