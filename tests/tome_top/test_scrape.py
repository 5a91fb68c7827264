"""A scrape sums series, and refuses what is not from this server."""

from __future__ import annotations

import pytest

from tests.server.conftest import free_port
from tome_top.scrape import NoMetrics, Scrape, scrape

TEXT = """
# TYPE tome_images_total counter
tome_images_total{model="a",r="0"} 2
tome_images_total{model="b",r="0"} 3
tome_images_total{model="b",r="16"} 4
"""


def test_series_are_summed_by_label_and_in_total() -> None:
    parsed = Scrape.parse(TEXT, at=1.0)
    assert parsed.by("tome_images_total", "model") == {"a": 2, "b": 7}
    assert parsed.by("tome_images_total", "r") == {"0": 5, "16": 4}
    assert parsed.total("tome_images_total") == 9


def test_a_metric_that_is_not_exported_has_no_sum() -> None:
    parsed = Scrape.parse(TEXT, at=1.0)
    assert parsed.by("tome_none", "model") == {}
    assert parsed.total("tome_none") is None


@pytest.mark.parametrize("text", ["<html>", "x{"])
def test_another_format_is_refused(text: str) -> None:
    with pytest.raises(NoMetrics, match="not in the format"):
        Scrape.parse(text, at=1.0)


def test_metrics_of_another_server_are_refused() -> None:
    with pytest.raises(NoMetrics, match="not from tome-serve"):
        Scrape.parse("up 1\n", at=1.0)


def test_without_a_server_there_is_no_answer() -> None:
    with pytest.raises(NoMetrics, match="no answer: Connection refused"):
        scrape(f"http://127.0.0.1:{free_port()}")
