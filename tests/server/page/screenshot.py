"""Take the screenshot in docs/: `python -m tests.server.page.screenshot`, on an idle machine.

A server of its own gets batches at r=0, 8 and 16 in turn, for the chart. Then the page measures the
forward passes.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import httpx
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.server.conftest import ROOT, run_server
from tests.server.page import browser as browsers
from tests.server.page.conftest import Page

IMAGE = ROOT / "examples" / "ankle-boot.png"
COLOURS = 128  # more than the page has; the file is a quarter of what it would be otherwise


def main() -> None:
    """Take the screenshot that the command line describes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "docs" / "page.png")
    parser.add_argument(
        "--width", type=int, default=1280, help="of the window, in pixels; default: %(default)s"
    )
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    parser.add_argument("--seconds", type=float, default=100, help="of load; default: %(default)s")
    options = parser.parse_args()
    if browsers.MISSING_BROWSER:
        parser.error(browsers.MISSING_BROWSER)
    with (
        run_server(levels="0,4,8,12,16", max_batch=32) as server,
        browsers.open_browser() as browser,
    ):
        browsers.resize(browser, options.width, 1000)
        browsers.set_colour_scheme(browser, "dark" if options.dark else "light")
        page = Page(browser)
        page.open(f"{server.url}/")
        page.wait_for_tokens("11 of 197 tokens")
        for r in (0, 8, 16):
            load(server.url, r, options.seconds / 3)
        page.element("measure").send_keys(Keys.ENTER)  # a mouse pointer would stay above it
        page.wait_until(
            lambda: "each of" in page.text("passes") and page.element("measure").is_enabled(),
            "the end of the measurement",
        )
        options.file.write_bytes(screenshot(browser, options.width))


def load(url: str, r: int, seconds: float) -> None:
    """Send batches at ``r`` one after another for ``seconds``."""
    files = [("file", IMAGE.read_bytes())] * 32
    end = time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=30) as client:
        while time.monotonic() < end:
            client.post(f"/classify?r={r}", files=files).raise_for_status()


def screenshot(browser: webdriver.Chrome, width: int) -> bytes:
    """Return the whole page as a small PNG file."""
    browsers.resize(
        browser, width, browser.execute_script("return document.scrollingElement.scrollHeight")
    )
    browser.execute_script("document.activeElement.blur()")
    shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    file = io.BytesIO()
    shot.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
