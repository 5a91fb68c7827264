"""One browser for all tests of the page, and the page as a test sees it."""

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

SECONDS = 60
# The page draws its results anew whenever they change, even while one is being read.
REDRAWN = (NoSuchElementException, StaleElementReferenceException)
UNKNOWN = "\N{EN DASH}"  # what stands where a number is not known


class Page:
    """The page in a browser."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def open(self, address: str) -> None:
        """Load it anew, as in a new tab: without a key, and with empty logs."""
        self.browser.get(address)
        self.script("sessionStorage.clear()")
        self.browser.get("about:blank")
        browsers.complaints(self.browser)
        browsers.requested(self.browser)
        self.browser.get(address)

    def at(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return self.at(name).text

    def shown(self, name: str) -> bool:
        return self.at(name).is_displayed()

    def script(self, code: str, *arguments: object) -> Any:
        return self.browser.execute_script(code, *arguments)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until ``condition`` holds."""
        try:
            WebDriverWait(self.browser, SECONDS, 0.05, REDRAWN).until(lambda _: condition())
        except TimeoutException:
            state = {name: self.text(name) for name in ("r-value", "tokens", "labels", "problem")}
            pytest.fail(f"not seen within {SECONDS} s: {what}; the page shows {state}")

    def until_tokens(self, text: str) -> None:
        """Wait for an answer with so many tokens that is no older than the choice."""
        self.until(
            lambda: (
                self.text("tokens") == text
                and self.at("outcome").get_attribute("aria-busy") != "true"
            ),
            text,
        )

    def until_regions(self, r: str) -> None:
        """Wait for both pictures of merging."""

        def drawn() -> bool:
            captions = [
                caption.text
                for caption in self.at("regions").find_elements(By.TAG_NAME, "figcaption")
            ]
            loaded = (
                "return [...document.querySelectorAll('#regions img')].every(e => e.complete &&"
                " e.naturalWidth)"
            )
            starts = ("r = 0,", f"r = {r},")
            return self.script(loaded) and all(map(str.startswith, captions, starts))

        self.until(drawn, f"regions at r=0 and r={r}")

    def upload(self, path: Path) -> None:
        self.browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(path))

    def slide(self, r: int, name: str = "r") -> None:
        """Move a slider as a script can: the events are those of a drag."""
        self.script(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];for (const"
            " kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}))",
            name,
            r,
        )


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    if browsers.MISSING:
        pytest.skip(browsers.MISSING)
    with browsers.open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser) -> Page:
    browsers.resize(browser, 1280, 1000)
    browsers.colours(browser, "light")
    return Page(browser)
