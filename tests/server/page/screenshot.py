"""Take the screenshot in docs/: `python -m tests.server.page.screenshot`, on an idle machine.

A server of its own gets batches at three of its levels of r in turn, for the chart. Then the page
measures the forward passes. `--config FILE --model NAME --r 130` shows a model of sound or video,
with the page's first example of it.
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
from selenium.webdriver.support.select import Select

from server.media.files import media_files
from server.media.modality import Modality
from tests.server.conftest import ROOT, run_server
from tests.server.page import browser as browsers
from tests.server.page.conftest import UNKNOWN, Page

EXAMPLES = ROOT / "examples"
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
    parser.add_argument("--config", default="", help="models file; default: the bundled model")
    parser.add_argument("--model", default="", help="default: the first")
    parser.add_argument("--r", type=int, default=16, help="default: %(default)s")
    options = parser.parse_args()
    if browsers.MISSING_BROWSER:
        parser.error(browsers.MISSING_BROWSER)
    with (
        run_server(levels="0,4,8,12,16", max_batch=32, config=options.config) as server,
        browsers.open_browser() as browser,
    ):
        browsers.resize(browser, options.width, 1000)
        browsers.set_colour_scheme(browser, "dark" if options.dark else "light")
        page = Page(browser)
        page.open(f"{server.url}/")
        wait_for_answer(page)
        if options.model:
            Select(page.element("model")).select_by_visible_text(options.model)
        page.move_slider(options.r)
        wait_for_answer(page)
        page.wait_for_regions(str(options.r))
        load(server.url, options.model, options.seconds)
        page.element("measure").send_keys(Keys.ENTER)  # a mouse pointer would stay above it
        page.wait_until(
            lambda: "each of" in page.text("passes") and page.element("measure").is_enabled(),
            "the end of the measurement",
        )
        options.file.write_bytes(screenshot(browser, options.width))


def wait_for_answer(page: Page) -> None:
    """Wait until the page shows an answer to what is chosen."""
    page.wait_until(lambda: page.tokens() not in ("", UNKNOWN), "an answer")


def load(url: str, name: str, seconds: float) -> None:
    """Send batches to a model at its lowest, middle and highest level, ``seconds`` in all."""
    with httpx.Client(base_url=url, timeout=60) as client:
        models = client.get("/models").raise_for_status().json()["models"]
        model = next(each for each in models if name in ("", each["name"]))
        example = media_files(EXAMPLES, Modality(model["modality"]))[0]
        levels = [level["r"] for level in model["levels"]]
        for r in (levels[0], levels[len(levels) // 2], levels[-1]):
            query = {"r": r, "model": model["name"]}
            files = [("file", example.read_bytes())] * 32
            end = time.monotonic() + seconds / 3
            while time.monotonic() < end:
                client.post("/classify", params=query, files=files).raise_for_status()


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
