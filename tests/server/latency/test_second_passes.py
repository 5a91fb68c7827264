"""The share of second passes that admission expects."""

from __future__ import annotations

import pytest

from server.latency.second_passes import EXPECTED_SHARE, SecondPasses


def test_requests_that_were_not_observed_have_a_share() -> None:
    assert SecondPasses().share("a") == EXPECTED_SHARE


@pytest.mark.parametrize("every", [1, 2, 4, 8])
def test_the_share_is_what_was_observed(every: int) -> None:
    passes = SecondPasses()
    for number in range(1000):
        passes.observe("a", number % every == 0)
    assert passes.share("a") == pytest.approx(1 / every, abs=1 / 16)
    assert passes.share("b") == EXPECTED_SHARE


def test_a_few_images_change_little() -> None:
    passes = SecondPasses()
    passes.observe("a", True)
    assert EXPECTED_SHARE <= passes.share("a") < 2 * EXPECTED_SHARE


def test_a_change_is_followed() -> None:
    passes = SecondPasses()
    for _ in range(5000):
        passes.observe("a", False)
    assert passes.share("a") == 0
    for _ in range(600):
        passes.observe("a", True)
    assert passes.share("a") > 0.8


def test_shares_are_few_different_numbers() -> None:
    passes = SecondPasses()
    shares = set()
    for number in range(3000):
        passes.observe("a", number % 7 < number // 500)
        shares.add(passes.share("a"))
    assert len(shares) <= 17


def test_clients_that_choose_margins_take_bounded_memory() -> None:
    passes = SecondPasses()
    for key in range(5000):
        passes.observe(key, True)
    assert len(passes) == 1024
    assert passes.share(4999) > EXPECTED_SHARE
    assert passes.share(0) == EXPECTED_SHARE
