"""A headless Chromium, driven by selenium, which sees what a person sees and logs what a page does."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BINARY = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
MISSING = (
    None
    if BINARY and DRIVER
    else "needs a Chromium and its chromedriver (Debian: chromium, chromium-driver)"
)


@contextlib.contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """A browser of 1280 by 1000 pixels in light colours. Raises selenium's WebDriverException where
    it cannot start.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = BINARY
    # No sandbox: root may have none, as in containers. Nothing but our own page is opened.
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(DRIVER))
    try:
        browser.set_script_timeout(20)
        resize(browser, 1280, 1000)
        colours(browser, "light")
        yield browser
    finally:
        browser.quit()


def resize(browser: webdriver.Chrome, width: int, height: int, scale: float = 1) -> None:
    """Give the page so many CSS pixels, each of ``scale`` pixels a side."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def colours(browser: webdriver.Chrome, scheme: str) -> None:
    """Prefer ``light`` or ``dark``."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the console has shown since it was last asked: failed requests, refusals of the policy,
    exceptions.
    """
    return [entry["message"] for entry in browser.get_log("browser")]


def requested(browser: webdriver.Chrome) -> list[str]:
    """The address of each request since it was last asked."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        each["params"]["request"]["url"]
        for each in events
        if each["method"] == "Network.requestWillBeSent"
    ]
