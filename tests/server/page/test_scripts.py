"""The plain functions of the page's scripts, run in the browser."""

from __future__ import annotations

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

    In the code, ``m`` is the module, and ``given`` are the values that were passed.
    """
    page.open(f"{server.url}/")

    def run(module: str, code: str, *given: object) -> Any:
        return page.browser.execute_async_script(
            f"""
            const [given, done] = arguments;
            const work = m => {{ {code} }};
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
