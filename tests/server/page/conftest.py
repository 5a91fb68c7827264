"""One browser for all tests of the front page, and a page object (`Page`) that tests work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.server.page import browser as browsers

WAIT_SECONDS = 60
# The page redraws its results whenever they change, even while a test reads one.
REDRAWN = (NoSuchElementException, StaleElementReferenceException)
UNKNOWN = "\N{EN DASH}"  # the page shows it in place of an unknown number


class Page:
    """The front page in a browser."""

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

    def element(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return self.element(name).text

    def is_shown(self, name: str) -> bool:
        return self.element(name).is_displayed()

    def run_script(self, code: str, *arguments: object) -> Any:
        return self.browser.execute_script(code, *arguments)

    def wait_until(self, condition: Callable[[], object], description: str) -> None:
        """Wait until ``condition`` holds; ``description`` says what that is if it does not."""
        try:
            WebDriverWait(self.browser, WAIT_SECONDS, 0.05, REDRAWN).until(lambda _: condition())
        except TimeoutException:
            state = {name: self.text(name) for name in ("r-value", "tokens", "labels", "problem")}
            pytest.fail(f"not seen within {WAIT_SECONDS} s: {description}; the page shows {state}")

    def wait_for_tokens(self, text: str) -> None:
        """Wait until the page shows ``text`` as the tokens of the latest request."""
        self.wait_until(
            lambda: (
                self.text("tokens") == text
                and self.element("outcome").get_attribute("aria-busy") != "true"
            ),
            text,
        )

    def wait_for_regions(self, r: str) -> None:
        """Wait for the pictures of merging at r=0 and at ``r``."""

        def drawn() -> bool:
            captions = [
                caption.text
                for caption in self.element("regions").find_elements(By.TAG_NAME, "figcaption")
            ]
            loaded = """
                const images = [...document.querySelectorAll('#regions img')];
                return images.every(image => image.complete && image.naturalWidth)"""
            starts = ("r = 0,", f"r = {r},")
            return self.run_script(loaded) and all(map(str.startswith, captions, starts))

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
