"""The page with models that have label sets: one of several is chosen."""

from __future__ import annotations

import pytest
from selenium.webdriver.support.select import Select

from tests.server.page import browser as browsers
from tests.server.tiny_pairs import BIRDS, COLOURS

TOKENS = 16  # patches; CLIP has a class token


@pytest.fixture
def pairs_page(page, pairs_server):
    """The page with the first answer of the first model."""
    page.open(f"{pairs_server.url}/")
    page.wait_for_answer(TOKENS + 1, "the first answer")
    yield page
    page.browser.get("about:blank")  # ends its requests for metrics


def top_label(page) -> str:
    return page.text("spoken").split(",")[0]


def test_a_label_set_is_chosen(pairs_page):
    assert top_label(pairs_page) in BIRDS
    choice = Select(pairs_page.element("text"))
    assert [option.text for option in choice.options] == ["birds (6)", "colours (2)"]
    choice.select_by_value("colours")
    pairs_page.wait_until(lambda: top_label(pairs_page) in COLOURS, "a colour")
    assert not pairs_page.is_shown("problem")
    assert browsers.console_messages(pairs_page.browser) == []


def test_the_choice_is_there_where_there_are_several(pairs_page):
    assert pairs_page.is_shown("text-choice")
    Select(pairs_page.element("model")).select_by_value("siglip")
    pairs_page.wait_until(lambda: not pairs_page.is_shown("text-choice"), "that it is hidden")
    pairs_page.wait_for_answer(TOKENS, "the answer of the other model")
    assert top_label(pairs_page) in BIRDS
    assert not pairs_page.is_shown("again-line")  # for a softmax


def test_a_model_is_listed_with_its_aliases(pairs_page):
    options = Select(pairs_page.element("model")).options
    assert [option.text for option in options] == ["clip, words", "siglip", "cosine", "features"]
    assert pairs_page.element("model").get_attribute("value") == "clip"
