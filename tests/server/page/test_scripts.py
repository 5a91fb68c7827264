"""The plain functions of the page's scripts, run in the browser."""

from __future__ import annotations

import array
import base64
import io
import wave
from typing import Any

import pytest

METRICS = """# HELP tome_images_total Images answered.
# TYPE tome_images_total counter
tome_images_total{{model="a}} 7",r="16"}} {first}
tome_images_total{{model="b\\"",r="0"}} {second}
tome_images_totals 99
tome_forward_seconds_total{{model="a"}} {forward}
tome_r0_equivalent_seconds_total{{model="a"}} {plain}
"""


@pytest.fixture
def run(page, server):
    """Return a function that runs JavaScript in the page, and returns its result.

    In the code, which may wait, ``m`` is the module, and ``given`` are the values that were passed.
    """
    page.open(f"{server.url}/")

    def run(module: str, code: str, *given: object) -> Any:
        return page.browser.execute_async_script(
            f"""
            const [given, done] = arguments;
            const work = async m => {{ {code} }};
            import('./static/{module}')
                .then(m => done(work(m)))
                .catch(error => done(String(error)));
            """,
            given,
        )

    return run


class TestRates:
    CODE = """
        const rates = new m.Rates();
        return given.map(([text, seconds]) => rates.next(text, seconds))"""

    def rates(self, run, *scrapes):
        """Return the rates after each scrape.

        A scrape: images of a model, of another one, forward seconds, the same at r=0, the time.
        """
        texts = [
            (METRICS.format(first=a, second=b, forward=forward, plain=plain), seconds)
            for a, b, forward, plain, seconds in scrapes
        ]
        return run("metrics.js", self.CODE, *texts)

    def test_rates_sum_all_models_between_two_scrapes(self, run):
        first, second = self.rates(run, (1, 2, 1.0, 1.0, 10), (4, 8.5e0, 1.5, 2.0, 12))
        assert first == {"throughput": None, "saving": None}
        assert second == {"throughput": pytest.approx(4.75), "saving": pytest.approx(2)}

    def test_an_idle_server_has_no_speed_up(self, run):
        assert self.rates(run, (1, 2, 1, 1, 0), (1, 2, 1, 1, 2))[1] == {
            "throughput": 0,
            "saving": None,
        }

    def test_a_server_that_restarted_has_no_rate_once(self, run):
        rates = self.rates(run, (9, 9, 9, 9, 0), (1, 1, 1, 1, 2), (3, 3, 3, 5, 4))
        assert rates[1] == {"throughput": None, "saving": None}
        assert rates[2] == {"throughput": 2, "saving": 2}


def test_a_chart_keeps_the_latest_values_and_leaves_gaps(run):
    code = """
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        document.createElement("div").append(svg);
        const chart = new m.Chart(svg, {length: 5, least: 2, reference: 1, unit: "x"});
        for (const value of given) chart.push(value);
        const curves = [...svg.querySelectorAll(".curve")].map(each => each.getAttribute("d"));
        const references = svg.querySelectorAll(".reference").length;
        return [curves, {...svg.parentElement.dataset}, references]"""
    curves, scale, references = run("chart.js", code, 999, 5, 10, None, 20, None)
    assert curves == ["M0.00 30.00L25.00 20.00", "M75.00 0.00h.01"]
    assert scale == {"top": "20x", "middle": "10x", "bottom": "0x"}
    assert references == 1
    assert run("chart.js", code, None)[1]["top"] == "2x"


def test_medians_are_of_the_latest_samples(run):
    code = """
        const samples = new m.Samples();
        for (const [r, time] of given) samples.add("model", r, time);
        const medians = ["0", "8", "16"].map(r => samples.median("model", r));
        return [...medians, samples.count("model", "8")]"""
    times = [
        ("8", 50.0),
        *(("8", float(time)) for time in range(20)),
        ("16", 3.0),
        ("16", 1.0),
        ("16", 9.0),
    ]
    assert run("samples.js", code, *times) == [None, 9.5, 3.0, 20]  # the 50 is forgotten


# Blobs come back as text.
BASE64 = """
    const base64 = async blob => {
        const bytes = new Uint8Array(await blob.arrayBuffer());
        return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
    };"""


def read_wav(text: str) -> tuple[int, array.array[int]]:
    """Return the sample rate and the samples of a WAV file of one channel of 16 bits."""
    with wave.open(io.BytesIO(base64.b64decode(text))) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getframerate(), array.array("h", file.readframes(file.getnframes()))


def test_samples_become_a_wav_file(run):
    code = BASE64 + "return base64(m.encode(Float32Array.from(given), 16000))"
    rate, samples = read_wav(run("wav.js", code, 0, 0.5, -0.5, 1, -1, 7, -7))
    assert rate == 16_000
    assert samples.tolist() == [0, 16_384, -16_383, 32_767, -32_767, 32_767, -32_767]
    assert len(read_wav(run("wav.js", code))[1]) == 0


def test_the_microphone_is_recorded_at_16_khz(run):
    code = (
        BASE64
        + """
        const recorder = new m.Recorder();
        const levels = [];
        let seconds = 0;
        await new Promise((done, fail) => recorder.start((now, level) => {
            levels.push(level);
            seconds = now;
            if (now >= 1.5) done();
        }).catch(fail));
        return [await base64(await recorder.stop(1.25)), seconds, Math.max(...levels)]"""
    )
    text, seconds, loudest = run("recorder.js", code)
    rate, samples = read_wav(text)
    assert rate == 16_000
    assert seconds >= 1.5
    assert len(samples) == 20_000  # no more than 1.25 s were asked for
    # The browser's microphone beeps once a second.
    assert 0.01 < loudest <= 1
    assert max(map(abs, samples)) > 300


def test_a_recording_may_be_given_up_before_anything_is_heard(run):
    code = (
        BASE64
        + """
        const recorder = new m.Recorder();
        await recorder.start(() => {});
        return base64(await recorder.stop(0))"""
    )
    assert len(read_wav(run("recorder.js", code))[1]) == 0


def test_windows_are_shown_in_order(run):
    # Read at once: the page shows those of its own answers.
    code = """
        m.show(given);
        const lines = [...document.querySelectorAll("#timeline li")];
        return [document.getElementById("windows").hidden, lines.map(line => line.textContent)]"""
    windows = [
        {"start": start, "end": start + 4, "predictions": [{"label": label, "score": score}]}
        for start, label, score in ((0, "en", 0.9), (4, "es", 1.5), (6.25, "<b>fr", -1))
    ]
    hidden, lines = run("timeline.js", code, *windows)
    assert lines == ["en 0 to 4 s", "es 4 to 8 s", "<b>fr 6.3 to 10.3 s"]
    assert not hidden
    assert run("timeline.js", code, windows[0]) == [True, []]
    assert run("timeline.js", code) == [True, []]
    crops = [dict(windows[0], crop=crop) for crop in range(2)]
    _, lines = run("timeline.js", code, *crops)
    assert lines == ["en 0 to 4 s, crop 0", "en 0 to 4 s, crop 1"]
