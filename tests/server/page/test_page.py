"""The page in a real browser before a real server: what a person does, and what they then see."""

from __future__ import annotations

import base64
import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from server.catalog.profiles import read_profile
from tests.server.conftest import ROOT
from tests.server.page import browser as browsers
from tests.server.page.conftest import UNKNOWN

PROFILE = ROOT / "server" / "bundled" / "fashion-mnist.profile.json"
# A millisecond may pass before the server looks at the clock, before it estimates, or in the queue.
UNMET = (
    r"^The deadline has passed: .*\.$|^The server cannot take .* deadline.*\. Trying again in \d+"
    r" s\.$"
)
BAG = ROOT / "examples" / "bag.png"
SNEAKER = ROOT / "examples" / "sneaker.jpg"


@pytest.fixture
def opened(page, server):
    """The page, with its first answer."""
    page.open(f"{server.url}/")
    page.until_tokens("11 of 197 tokens")
    return page


def best(page):
    return page.at("labels").find_element(By.TAG_NAME, "span").text


def test_it_opens_with_an_example_that_is_answered(opened):
    assert best(opened) == "Ankle boot"
    opened.until_regions("16")
    assert opened.at("examples").find_elements(By.CSS_SELECTOR, "[aria-pressed=true] img")


def test_a_file_is_classified_beside_r_0(opened):
    opened.upload(BAG)
    opened.until(lambda: best(opened) == "Bag", "the file's class")
    opened.until(lambda: opened.text("agreement") == "as with r = 0", "that both agree")
    opened.until(lambda: re.fullmatch(r"\d+\.\d\d\u00d7", opened.text("speedup")), "a speed-up")
    assert re.search(r"round trip \d", opened.text("timing"))
    assert re.fullmatch(r"\d+ of \d+ tokens", opened.text("tokens"))
    rows = [row.text for row in opened.at("forward").find_elements(By.TAG_NAME, "tr")]
    assert re.fullmatch(r"r = 16\s+[\d.]+ ms", rows[0])
    assert re.fullmatch(r"r = 0\s+[\d.]+ ms", rows[1])


def test_r_changes_what_is_seen(opened):
    opened.until_regions("16")
    merged = opened.at("region-merged").get_attribute("src")
    opened.slide(8)
    opened.until_tokens("101 of 197 tokens")
    opened.until_regions("8")
    assert opened.at("region-merged").get_attribute("src") != merged
    opened.slide(0)
    opened.until_tokens("197 of 197 tokens")
    opened.until_regions("0")
    assert opened.at("region-merged").get_attribute("src") == opened.at(
        "region-plain"
    ).get_attribute("src")


def test_the_first_range_is_r(opened):
    slider = opened.browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    assert (slider.get_attribute("id"), slider.get_attribute("min")) == ("r", "0")
    assert int(slider.get_attribute("max")) >= 16


def test_the_slider_and_the_examples_work_by_keyboard(opened):
    opened.at("r").send_keys(Keys.HOME)
    opened.until_tokens("197 of 197 tokens")
    opened.at("r").send_keys(Keys.ARROW_RIGHT * 4)
    opened.until_tokens("149 of 197 tokens")
    style = "return getComputedStyle(document.activeElement).outlineStyle"
    assert (opened.browser.switch_to.active_element.get_attribute("id"), opened.script(style)) == (
        "r",
        "solid",
    )
    opened.at("examples").find_element(By.CSS_SELECTOR, "[data-name='trouser.png']").send_keys(
        Keys.ENTER
    )
    opened.until(lambda: best(opened) == "Trouser", "the example's class")
    opened.until(lambda: opened.text("spoken").startswith("Trouser,"), "that it is spoken")


def test_only_the_last_place_of_the_slider_counts(opened):
    opened.until_regions("16")
    browsers.requested(opened.browser)
    opened.script(
        "const r = document.getElementById('r');"
        "for (r.value = 25; r.value > 8; r.dispatchEvent(new Event('input'))) r.stepDown()"
    )
    opened.until_tokens("101 of 197 tokens")
    opened.until_regions("8")
    asked = [parse_qs(urlsplit(address).query) for address in browsers.requested(opened.browser)]
    of_r = [query["r"][0] for query in asked if "r" in query]
    assert set(of_r) <= {"16", "0", "8"}  # 16 was being timed
    assert of_r.count("8") <= 6  # its picture, and five passes that are timed


def test_auto_is_chosen_and_left_by_keyboard(opened):
    opened.until_regions("16")
    opened.at("auto").send_keys(Keys.SPACE)
    assert opened.at("auto").is_selected()
    opened.at("auto").send_keys(Keys.TAB)
    field = opened.browser.switch_to.active_element
    assert (field.get_attribute("id"), field.get_attribute("value")) == ("deadline", "100")
    browsers.requested(opened.browser)
    field.send_keys(Keys.CONTROL + "a")
    field.send_keys("8000" + Keys.ENTER)
    opened.until(
        lambda: opened.text("r-value").endswith("chosen for 8000 ms"), "which r the server used"
    )
    # Whoever was late for its 100 ms made the server merge, which it goes on doing for a while.
    again = 0
    while opened.text("r-value") != "r = 0, chosen for 8000 ms" and again < 10:
        opened.script("document.getElementById('deadline').dispatchEvent(new Event('change'))")
        time.sleep(1)
        again += 1
        opened.until(
            lambda: opened.text("r-value").endswith("chosen for 8000 ms"), "which r the server used"
        )
    assert opened.text("r-value") == "r = 0, chosen for 8000 ms"
    opened.until_tokens("197 of 197 tokens")
    opened.until_regions("0")
    asked = [parse_qs(urlsplit(address).query) for address in browsers.requested(opened.browser)]
    deadlines = [query["deadline_ms"][0] for query in asked if query.get("r") == ["auto"]]
    of_8000 = ["8000"] * (1 + again)
    assert deadlines in (
        of_8000,
        ["100", *of_8000],
    )  # nothing while it is typed; the first may have been given up
    assert all(
        control.is_enabled()
        for control in opened.browser.find_elements(By.CSS_SELECTOR, "input, button")
    )
    opened.at("r").send_keys(Keys.ARROW_LEFT)  # whoever moves the slider chooses r
    opened.until_regions("15")
    assert opened.text("r-value") == "r = 15"
    assert not opened.at("auto").is_selected()


def test_a_deadline_that_no_r_meets_is_told(opened):
    opened.at("auto").click()
    opened.slide(1, "deadline")
    opened.until(lambda: re.search(UNMET, opened.text("problem")), "why there is no answer")
    assert opened.text("r-value") == "r = auto"
    assert opened.text("tokens") == UNKNOWN
    captions = [
        caption.text.strip()
        for caption in opened.at("regions").find_elements(By.TAG_NAME, "figcaption")
    ]
    assert captions == ["r = 0", ""]
    times = [row.text.split()[-1] for row in opened.at("forward").find_elements(By.TAG_NAME, "tr")]
    assert times == [UNKNOWN, UNKNOWN]
    assert opened.text("speedup") == ""
    opened.slide(0, "deadline")  # which is none, so that the first one holds again
    opened.until(lambda: opened.at("deadline").get_attribute("value") == "100", "a deadline")
    opened.slide(8)
    opened.until_tokens("101 of 197 tokens")
    assert not opened.shown("problem")


def test_an_inflection(opened):
    opened.browser.find_element(By.TAG_NAME, "summary").click()
    opened.slide(-1, "inflection")
    opened.until_tokens("10 of 197 tokens")
    assert opened.text("r-value") == "r = 16:-1"


def test_a_level_is_chosen_in_its_table(opened):
    rows = opened.at("level-rows").find_elements(By.TAG_NAME, "tr")
    assert [row.get_attribute("data-r") for row in rows] == ["0", "16"]
    assert "197" in rows[0].text
    measured = {row.r: row.accuracy for row in read_profile(PROFILE)}
    assert f"{measured['16']:.2f}%" in rows[1].text
    rows[0].find_element(By.TAG_NAME, "button").click()
    opened.until_tokens("197 of 197 tokens")
    assert [row.get_attribute("aria-current") for row in rows] == ["true", None]
    pressed = [
        row.find_element(By.TAG_NAME, "button").get_attribute("aria-pressed") for row in rows
    ]
    assert pressed == ["true", "false"]


def test_measuring_in_batches(opened):
    opened.at("measure").send_keys(Keys.ENTER)
    opened.until(
        lambda: opened.text("passes").startswith("Forward pass, each of 64, median of "),
        "a measurement",
    )
    opened.until(lambda: opened.at("measure").is_enabled(), "its end")
    assert opened.browser.switch_to.active_element.get_attribute("id") == "measure"
    assert re.fullmatch(r"\d+\.\d\d\u00d7", opened.text("speedup"))


def test_the_chart_is_of_the_servers_metrics(opened):
    opened.at("measure").click()
    opened.until(
        lambda: re.fullmatch(r"[\d.]+ images/s", opened.text("throughput-now")), "a throughput"
    )
    drawn = "return document.querySelectorAll('#throughput .curve').length"
    opened.until(lambda: opened.script(drawn), "a curve")
    opened.until(
        lambda: opened.script("return document.querySelectorAll('#saving .curve').length"),
        "a speed-up",
    )


def test_a_pasted_picture(opened):
    opened.script(
        "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)), data = new"
        " DataTransfer();data.items.add(new File([bytes], 'pasted.png', {type:"
        " 'image/png'}));document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data,"
        " cancelable: true}))",
        base64.b64encode(BAG.read_bytes()).decode(),
    )
    opened.until(lambda: best(opened) == "Bag", "the class of what was pasted")


def test_what_is_no_image_is_told_and_the_next_one_is_answered(opened, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("this is no picture")
    opened.upload(text)
    opened.until(lambda: opened.shown("problem"), "a problem")
    assert "image" in opened.text("problem").lower()
    assert opened.text("tokens") == UNKNOWN
    assert not opened.shown("region-merged")
    assert all("415" in line for line in browsers.complaints(opened.browser))
    opened.upload(SNEAKER)
    opened.until(
        lambda: not opened.shown("problem") and best(opened) == "Sneaker", "the next file's class"
    )


def test_nothing_is_loaded_from_elsewhere_and_nothing_complains(opened, server):
    opened.until_regions("16")
    opened.slide(4)
    opened.until_regions("4")
    addresses = browsers.requested(opened.browser)
    assert len(addresses) > 10
    hosts = {urlsplit(address).netloc for address in addresses if not address.startswith("blob:")}
    assert hosts == {f"127.0.0.1:{server.port}"}
    assert browsers.complaints(opened.browser) == []


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_it_fits_a_screen_of(width, opened):
    browsers.resize(opened.browser, width, 740)
    opened.until_regions("16")
    assert opened.script("return document.scrollingElement.scrollWidth <= innerWidth")
    for name in ("file", "r", "auto", "deadline", "measure", "levels", "live"):
        box = opened.at(name).rect
        assert box["x"] >= 0
        assert 0 < box["width"] <= width
    for control in opened.browser.find_elements(By.CSS_SELECTOR, "input, select, button"):
        if control.is_displayed():
            assert control.rect["height"] >= 20, control.get_attribute("outerHTML")


def test_on_a_small_screen_the_slider_stays_in_sight(opened):
    browsers.resize(opened.browser, 360, 740)
    opened.script("document.getElementById('regions').scrollIntoView()")
    opened.until(
        lambda: (
            0
            <= opened.script("return document.getElementById('r').getBoundingClientRect().top")
            < 200
        ),
        "r",
    )


def test_on_a_small_screen_a_problem_covers_neither_the_slider_nor_what_has_the_focus(opened):
    browsers.resize(opened.browser, 360, 740)
    opened.slide(1, "deadline")
    opened.at("auto").send_keys(Keys.SPACE)
    opened.until(lambda: opened.shown("problem"), "a problem")
    seen = (
        "const e = document.activeElement, b = e.getBoundingClientRect();return e === document.body"
        " || [[b.left + 3, b.top + 3], [b.right - 3, b.bottom - 3]].every(place =>{ const at ="
        " document.elementFromPoint(...place); return at && (e.contains(at) || at.contains(e)) })"
    )
    for _ in range(20):  # there are fewer controls than that
        ActionChains(opened.browser).send_keys(Keys.TAB).perform()
        focused = opened.browser.switch_to.active_element
        assert opened.script(seen), focused.get_attribute("outerHTML")
    opened.script("document.getElementById('levels').scrollIntoView()")
    opened.at("r").send_keys(Keys.NULL)
    assert opened.script(seen)
    assert opened.script("return document.activeElement.id") == "r"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_written_can_be_read(scheme, opened):
    """WCAG 2.2, 1.4.3: a contrast of 4.5 to 1."""
    browsers.colours(opened.browser, scheme)
    assert (luminance(opened, "body", "backgroundColor") < 0.1) == (scheme == "dark")
    for ink, ground in [
        ("body", "body"),
        ("small", ".card"),
        ("#r-value", ".card"),
        ("#measure", "#measure"),
    ]:
        pair = sorted(
            [luminance(opened, ink, "color"), luminance(opened, ground, "backgroundColor")]
        )
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ink, ground)


def luminance(page, selector, of):
    """The relative luminance of a computed colour, as WCAG defines it."""
    text = page.script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, of
    )
    parts = [int(part) / 255 for part in re.findall(r"\d+", text)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_control_has_a_name(opened):
    unnamed = (
        "return [...document.querySelectorAll('input:not([hidden]), select, button')].filter(e"
        " =>!(e.labels?.length || e.ariaLabel || e.textContent.trim() ||"
        " e.querySelector('img[alt]:not([alt=\"\"])'))).map(e => e.outerHTML)"
    )
    assert opened.script(unnamed) == []
