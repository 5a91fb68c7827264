"""One browser for all tests of the front page, and a page object (`Page`) that tests work with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.server.page import browser as browsers

WAIT_SECONDS = 60
UNKNOWN = "\N{EN DASH}"  # the page shows it in place of an unknown number

# The text of an element that is not rendered is empty.
RENDERED_TEXTS = """
    const elements = [...document.querySelectorAll(arguments[0])];
    return elements.map(each => each.checkVisibility() ? each.innerText.trim() : '')"""
ATTRIBUTES = """
    const elements = [...document.querySelectorAll(arguments[0])];
    return elements.map(each => each.getAttribute(arguments[1]))"""


class Page:
    """The front page in a browser.

    The page redraws its results whenever they change, even while a test reads them. So whatever it
    draws is read in one script, which finds the elements too.
    """

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def open(self, address: str) -> None:
        """Load the page as in a new tab: without a key, and with empty logs."""
        self.browser.get(address)
        self.run_script("sessionStorage.clear()")
        self.browser.get("about:blank")
        browsers.console_messages(self.browser)
        browsers.requested_urls(self.browser)
        self.browser.get(address)

    def resize(self, width: int, height: int) -> None:
        browsers.resize(self.browser, width, height)
        self.wait_until(lambda: self.run_script("return innerWidth") == width, "the new size")

    def element(self, name: str) -> WebElement:
        """Return an element of index.html, which the page changes but never replaces."""
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        [text] = self.texts(f"#{name}")
        return text

    def texts(self, css_selector: str) -> list[str]:
        """Return what is seen of the text of each element."""
        return self.run_script(RENDERED_TEXTS, css_selector)

    def attributes(self, css_selector: str, name: str) -> list[str | None]:
        return self.run_script(ATTRIBUTES, css_selector, name)

    def tokens(self) -> str:
        """Return the tokens of the answer to what is chosen; empty until the page has it."""
        return "".join(self.texts("#outcome:not([aria-busy=true]) #tokens"))

    def is_shown(self, name: str) -> bool:
        return self.element(name).is_displayed()

    def run_script(self, code: str, *arguments: object) -> Any:
        return self.browser.execute_script(code, *arguments)

    def wait_until(self, condition: Callable[[], object], description: str) -> None:
        """Wait until ``condition`` holds; ``description`` says what that is if it does not."""
        try:
            WebDriverWait(self.browser, WAIT_SECONDS, 0.05).until(lambda _: condition())
        except TimeoutException:
            state = {name: self.text(name) for name in ("r-value", "tokens", "labels", "problem")}
            pytest.fail(f"not seen within {WAIT_SECONDS} s: {description}; the page shows {state}")

    def wait_for_tokens(self, text: str) -> None:
        """Wait until the page shows ``text`` as the tokens of the latest request."""
        self.wait_until(lambda: self.tokens() == text, text)

    def wait_for_answer(self, input_tokens: int, description: str) -> None:
        """Wait for an answer to a new upload or model, and for the answer at r=0.

        The page draws the result with the first, and again with the second.
        """
        pattern = rf"\d+ of {input_tokens} tokens"
        self.wait_until(
            lambda: re.fullmatch(pattern, self.tokens()) and self.text("agreement"), description
        )

    def forget_answer(self) -> None:
        """Empty what tests wait for, so that they see the next answer even if it is the same.

        First the page draws all of the current answer; later it would fill them again.
        """
        self.wait_for_regions(self.run_script("return document.getElementById('r').value"))
        self.run_script(
            "document.querySelectorAll('#tokens, #agreement, #regions figcaption')"
            ".forEach(each => each.textContent = '')"
        )

    def ask_again(self) -> None:
        """Make the page repeat its request of r=auto."""
        self.run_script("document.getElementById('deadline').dispatchEvent(new Event('change'))")

    def wait_for_regions(self, r: str) -> None:
        """Wait for the pictures of merging at r=0 and at ``r``."""

        def drawn() -> bool:
            captions = self.texts("#regions figcaption")
            loaded = """
                const images = [...document.querySelectorAll('#regions img')];
                return images.every(image => image.complete && image.naturalWidth)"""
            starts = ("r = 0,", f"r = {r},")
            return all(map(str.startswith, captions, starts)) and self.run_script(loaded)

        self.wait_until(drawn, f"regions at r=0 and r={r}")

    def upload(self, path: Path) -> None:
        self.browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(path))

    def move_slider(self, r: int, name: str = "r") -> None:
        """Move a slider by script, with the events of a drag."""
        self.run_script(
            """
            const slider = document.getElementById(arguments[0]);
            slider.value = arguments[1];
            for (const type of ['input', 'change'])
                slider.dispatchEvent(new Event(type, {bubbles: true}));
            """,
            name,
            r,
        )


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    if browsers.MISSING_BROWSER:
        pytest.skip(browsers.MISSING_BROWSER)
    with browsers.open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser) -> Page:
    browsers.resize(browser, 1280, 1000)
    browsers.set_colour_scheme(browser, "light")
    return Page(browser)


@pytest.fixture
def loaded_page(page, server) -> Page:
    """The page, once its first results are there."""
    page.open(f"{server.url}/")
    page.wait_for_tokens("11 of 197 tokens")
    return page
