"""Errors of requests have a status, a slug and members of their problem document."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from server.errors import Overloaded, Refusal, RequestError, TooLarge

CLASSES = RequestError.__subclasses__()


def test_slugs_are_unique() -> None:
    errors: list[type[RequestError]] = [RequestError, *CLASSES]
    slugs = [error.slug for error in errors]
    assert len(set(slugs)) == len(slugs)


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_has_a_valid_status_and_a_title(error: type[RequestError]) -> None:
    assert HTTPStatus(error.status) >= 400
    assert error.title != RequestError.title
    assert error.slug == error.slug.lower()


def test_further_arguments_become_members_of_the_problem() -> None:
    error = TooLarge("too many pixels", limit=100)
    assert str(error) == error.detail == "too many pixels"
    assert error.extensions == {"limit": 100}
    assert error.retry_after is None


def test_half_a_surrogate_pair_of_a_client_can_be_written() -> None:
    error = TooLarge("no member 'ü\ud800'", parameter="\ud800", limit=1)
    assert error.detail == str(error) == "no member 'ü\\ud800'"
    assert error.extensions == {"parameter": "\\ud800", "limit": 1}


def test_the_time_to_a_retry_is_no_member() -> None:
    error = Overloaded("the queue is full", retry_after=1.5, reason=Refusal.QUEUE_FULL)
    assert error.retry_after == 1.5
    assert error.extensions == {"reason": "queue-full"}
