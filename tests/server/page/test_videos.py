"""The page with a model of video: the player, the contact sheet and the example."""

from __future__ import annotations

import pytest
from selenium.webdriver.support.select import Select

from server.api.routes.pages import STATIC_FOLDER
from server.media.files import media_files
from server.media.modality import Modality
from tests.server.conftest import ROOT
from tests.server.page import browser as browsers
from tests.server.tiny_clip import LABELS, TOKENS

BAG = ROOT / "examples" / "bag.png"
EXAMPLES = media_files(STATIC_FOLDER / "page" / "examples", Modality.VIDEO)
PLAYS = """
    const movie = document.getElementById('movie');
    return movie.duration > 0 && movie.currentTime > 0 && !movie.paused && movie.muted"""


@pytest.fixture
def clip_page(page, clip_server):
    """The page, with the model of video chosen, and its answer for the example."""
    page.open(f"{clip_server.url}/")
    page.wait_until(lambda: page.text("tokens").endswith("of 17 tokens"), "an image's answer")
    Select(page.element("model")).select_by_value("clip")
    page.wait_for_answer(TOKENS, "the example's answer")
    yield page
    page.browser.get("about:blank")  # ends its requests for metrics


def test_the_example_plays_beside_its_contact_sheet(clip_page):
    assert clip_page.text("upload-title") == "Video"
    titles = [path.stem.replace("-", " ") for path in EXAMPLES]
    assert clip_page.texts("#examples button") == titles
    clip_page.wait_until(lambda: clip_page.run_script(PLAYS), "that it plays")
    assert not clip_page.is_shown("preview") and not clip_page.is_shown("player")
    clip_page.wait_for_regions(clip_page.element("r").get_attribute("value"))
    size = "const {naturalWidth, naturalHeight} = document.getElementById('region-merged');"
    # Four frames of 4 x 4 tubelets in a row.
    assert clip_page.run_script(f"{size} return [naturalWidth, naturalHeight]") == [524, 128]
    assert clip_page.text("spoken").split(",")[0] in LABELS
    merged = clip_page.element("region-merged").get_attribute("src")
    clip_page.move_slider(4)
    clip_page.wait_for_tokens(f"{TOKENS - 8} of {TOKENS} tokens")
    clip_page.wait_for_regions("4")
    assert clip_page.element("region-merged").get_attribute("src") != merged
    assert not clip_page.is_shown("timeline")  # there is one clip, of one crop
    assert browsers.console_messages(clip_page.browser) == []


def test_a_file_chooses_the_model_that_takes_it(clip_page):
    clip_page.upload(BAG)
    clip_page.wait_until(lambda: clip_page.text("tokens").endswith("of 17 tokens"), "the image")
    assert not clip_page.is_shown("movie")
    assert clip_page.run_script("return document.getElementById('movie').paused")
    clip_page.upload(EXAMPLES[0])
    clip_page.wait_for_answer(TOKENS, "the video")
    assert clip_page.element("model").get_attribute("value") == "clip"
    assert clip_page.is_shown("movie")


def test_a_video_that_cannot_be_read_is_reported(clip_page, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(EXAMPLES[0].read_bytes()[:2000])
    clip_page.upload(broken)
    clip_page.wait_until(lambda: clip_page.is_shown("problem"), "a problem")
    assert "video" in clip_page.text("problem").lower()


def test_it_fits_a_small_screen(clip_page):
    clip_page.resize(360, 740)
    assert clip_page.run_script("return document.scrollingElement.scrollWidth <= innerWidth")
    box = clip_page.element("movie").rect
    assert box["x"] >= 0
    assert 0 < box["width"] <= 360
    assert clip_page.element("movie").accessible_name == "The chosen video"
