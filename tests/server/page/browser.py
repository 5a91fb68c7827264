"""A headless Chromium, driven by selenium, that logs its console and its requests."""

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
MISSING_BROWSER = (
    None
    if BINARY and DRIVER
    else "needs a Chromium and its chromedriver (Debian: chromium, chromium-driver)"
)


@contextlib.contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """Start a browser of 1280 by 1000 pixels in light colours.

    Raises:
        WebDriverException: it cannot start.
    """
    options = webdriver.ChromeOptions()
    assert BINARY is not None
    options.binary_location = BINARY
    # No sandbox: Chromium has none for root, as in containers. It opens pages of this server only.
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        # A microphone that beeps, and that every page may use.
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(DRIVER))
    try:
        browser.set_script_timeout(20)
        resize(browser, 1280, 1000)
        set_colour_scheme(browser, "light")
        yield browser
    finally:
        browser.quit()


def resize(browser: webdriver.Chrome, width: int, height: int, scale: float = 1) -> None:
    """Set the size of the page in CSS pixels, each ``scale`` device pixels wide."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def set_colour_scheme(browser: webdriver.Chrome, scheme: str) -> None:
    """Set the preferred colour scheme: ``light`` or ``dark``."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def console_messages(browser: webdriver.Chrome) -> list[str]:
    """Return new console messages: failed requests, policy violations, exceptions."""
    return [entry["message"] for entry in browser.get_log("browser")]


def requested_urls(browser: webdriver.Chrome) -> list[str]:
    """Return the address of each request since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
