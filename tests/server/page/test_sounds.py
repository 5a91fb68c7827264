"""The page with a model of sound: files, recordings, the player and the windows."""

from __future__ import annotations

import re

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tests.server.conftest import ROOT
from tests.server.page import browser as browsers
from tests.server.tiny_ear import LABELS, sound

BAG = ROOT / "examples" / "bag.png"


@pytest.fixture
def ear_page(page, ear_server):
    """The page, with the model of sound chosen, and the answer for the example forgotten."""
    page.open(f"{ear_server.url}/")
    page.wait_until(lambda: page.text("tokens").endswith("of 17 tokens"), "an image's answer")
    Select(page.element("model")).select_by_value("ear")
    page.wait_until(lambda: page.is_shown("record"), "that it records")
    page.wait_for_answer(66, "the example's answer")
    page.forget_answer()
    yield page
    page.browser.get("about:blank")  # ends its requests for metrics


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(sound(3.5))
    return path


def windows(page):
    """Return the text of each window."""
    return page.texts("#timeline button")


def seconds_recorded(page):
    clock = re.fullmatch(r"(\d+\.\d) of 15 s", page.text("record-time"))
    return float(clock[1]) if clock else 0


def region_size(page):
    script = "const image = document.getElementById('region-merged');"
    return page.run_script(f"{script} return [image.naturalWidth, image.naturalHeight]")


def test_a_file_is_classified_drawn_and_played(ear_page, clip):
    assert ear_page.text("upload-title") == "Sound"
    assert not ear_page.is_shown("preview")
    ear_page.upload(clip)
    ear_page.wait_for_answer(66, "the answer")
    ear_page.wait_for_regions(ear_page.element("r").get_attribute("value"))
    assert region_size(ear_page) == [128, 128]
    captions = ear_page.texts("#regions figcaption")
    assert all(caption.endswith(", the first window") for caption in captions)
    labels = [line.split("\n") for line in windows(ear_page)]
    assert [label in LABELS for label, _ in labels] == [True] * 3
    assert labels[0][1].startswith("0 to 1.3 s")
    duration = "return document.getElementById('player').duration"
    ear_page.wait_until(lambda: ear_page.run_script(duration) == 3.5, "that the player has it")
    second_window = "#timeline li:nth-child(2) button"
    ear_page.browser.find_element(By.CSS_SELECTOR, second_window).send_keys(Keys.ENTER)
    position = "return document.getElementById('player').currentTime"
    ear_page.wait_until(lambda: ear_page.run_script(position) >= 1.28, "that it plays the window")
    assert browsers.console_messages(ear_page.browser) == []


def test_a_short_sound_has_no_windows(ear_page, tmp_path):
    short = tmp_path / "short.wav"
    short.write_bytes(sound(1))
    ear_page.upload(short)
    ear_page.wait_for_answer(66, "the answer")
    assert not ear_page.is_shown("timeline")
    ear_page.wait_until(
        lambda: re.fullmatch(r"\d+\.\d\d\u00d7", ear_page.text("speedup")), "a speed-up"
    )


def test_the_microphone_is_recorded_classified_and_played(ear_page):
    ear_page.element("record").send_keys(Keys.ENTER)
    ear_page.wait_until(lambda: ear_page.text("record") == "Stop", "that it records")
    ear_page.wait_until(lambda: seconds_recorded(ear_page) >= 2, "two seconds")
    assert ear_page.is_shown("level")
    focused = ear_page.browser.switch_to.active_element
    assert focused.get_attribute("id") == "record"
    focused.send_keys(Keys.SPACE)
    ear_page.wait_for_answer(66, "the answer")
    assert ear_page.text("record") == "Record"
    assert not ear_page.is_shown("level")
    assert len(windows(ear_page)) >= 2
    duration = "return document.getElementById('player').duration"
    ear_page.wait_until(lambda: 1.9 < (ear_page.run_script(duration) or 0) <= 15, "the recording")
    assert ear_page.text("spoken").split(",")[0] in LABELS
    assert browsers.console_messages(ear_page.browser) == []


def test_another_model_ends_a_recording(ear_page):
    ear_page.element("record").click()
    ear_page.wait_until(lambda: ear_page.text("record") == "Stop", "that it records")
    Select(ear_page.element("model")).select_by_value("tiny")
    ear_page.wait_until(lambda: ear_page.text("tokens").endswith("of 17 tokens"), "the image")
    assert not ear_page.is_shown("record")
    Select(ear_page.element("model")).select_by_value("ear")
    ear_page.wait_until(lambda: ear_page.text("record") == "Record", "that it can record again")
    duration = "return document.getElementById('player').duration"
    ear_page.wait_until(
        lambda: 4 < (ear_page.run_script(duration) or 0) < 5, "the example, not the recording"
    )


HOLD_MICROPHONE = """
    const devices = navigator.mediaDevices;
    const open = devices.getUserMedia.bind(devices);
    const allowed = new Promise(resolve => { window.allow = resolve; });
    devices.getUserMedia = async constraints => {
      await allowed;
      return window.stream = await open(constraints);
    };"""
COUNT_RECORDINGS = """
    const button = document.getElementById("record");
    window.recordings = 0;
    const count = () => { window.recordings += button.textContent === "Stop"; };
    new MutationObserver(count).observe(button, { childList: true });"""
IS_RELEASED = "return window.stream?.getTracks().every(track => track.readyState === 'ended')"


def test_a_microphone_that_is_allowed_too_late_is_released(ear_page):
    ear_page.run_script(HOLD_MICROPHONE)
    ear_page.run_script(COUNT_RECORDINGS)
    ear_page.element("record").click()
    Select(ear_page.element("model")).select_by_value("tiny")
    ear_page.wait_until(lambda: ear_page.text("tokens").endswith("of 17 tokens"), "the image")
    ear_page.run_script("window.allow()")
    ear_page.wait_until(lambda: ear_page.run_script(IS_RELEASED), "that nothing listens")
    assert ear_page.run_script("return window.recordings") == 0
    Select(ear_page.element("model")).select_by_value("ear")
    ear_page.wait_until(lambda: ear_page.text("record") == "Record", "that it can record")


def test_a_microphone_that_cannot_be_read_is_released(ear_page):
    ear_page.run_script(f"{HOLD_MICROPHONE} window.allow()")
    ear_page.run_script("window.AudioWorkletNode = class { constructor() { throw Error('no'); } }")
    ear_page.element("record").click()
    ear_page.wait_until(
        lambda: ear_page.text("record-note") == "The microphone cannot be used: no", "the reason"
    )
    assert ear_page.run_script(IS_RELEASED)
    assert ear_page.text("record") == "Record"


def test_a_file_chooses_the_model_that_takes_it(ear_page, clip):
    ear_page.upload(BAG)
    ear_page.wait_until(lambda: ear_page.text("tokens").endswith("of 17 tokens"), "the image")
    assert ear_page.element("model").get_attribute("value") == "tiny"
    assert ear_page.text("upload-title") == "Picture"
    ear_page.upload(clip)
    ear_page.wait_for_answer(66, "the sound")
    assert ear_page.element("model").get_attribute("value") == "ear"
    ear_page.wait_until(lambda: len(windows(ear_page)) == 3, "its windows")
    Select(ear_page.element("model")).select_by_value("tiny")  # each keeps its upload
    ear_page.wait_until(lambda: ear_page.text("tokens").endswith("of 17 tokens"), "the image")
    assert ear_page.element("preview").get_attribute("alt") == "Your picture bag.png"
    assert not ear_page.is_shown("player")
    assert not ear_page.is_shown("timeline")


def test_a_sound_that_cannot_be_read_is_reported(ear_page, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(sound(1)[:30])
    ear_page.upload(broken)
    ear_page.wait_until(lambda: ear_page.is_shown("problem"), "a problem")
    assert "sound" in ear_page.text("problem").lower()
    assert not windows(ear_page)
    text = tmp_path / "notes.txt"
    text.write_text("no sound")
    ear_page.upload(text)
    ear_page.wait_until(
        lambda: "allowed are WAV, FLAC, OGG" in ear_page.text("problem"), "what the model takes"
    )


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_a_screen_and_every_control_has_a_name(ear_page, clip, width):
    ear_page.resize(width, 740)
    ear_page.upload(clip)
    ear_page.wait_for_answer(66, "the answer")
    assert ear_page.run_script("return document.scrollingElement.scrollWidth <= innerWidth")
    for name in ("player", "record", "timeline"):
        box = ear_page.element(name).rect
        assert box["x"] >= 0
        assert 0 < box["width"] <= width
    unnamed = """
        const kinds = 'input:not([hidden]), select, button, audio, meter';
        const controls = [...document.querySelectorAll(kinds)];
        const hasName = control => control.labels?.length || control.ariaLabel
            || control.textContent.trim() || control.querySelector('img[alt]:not([alt=""])');
        return controls.filter(control => !hasName(control)).map(control => control.outerHTML)"""
    assert ear_page.run_script(unnamed) == []


def test_a_measurement_counts_all_windows(ear_page, clip):
    ear_page.upload(clip)
    ear_page.wait_for_answer(66, "the answer")
    ear_page.wait_until(lambda: ear_page.text("speedup"), "what moves the button last")
    ear_page.element("measure").click()
    # As much work as 64 pictures of 197 tokens.
    ear_page.wait_until(
        lambda: ear_page.text("passes").startswith("Forward pass, each of 63"), "a measurement"
    )
