"""Every query of the dashboard, rule and alert, run by a real Prometheus against a real server
under load.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator

import httpx
import pytest
import yaml

from server.engine.device.placement import cpu_dtypes
from tests.deploy import monitoring
from tests.deploy.monitoring import (
    DASHBOARD,
    Prometheus,
    filled,
    queries,
    rules,
    run_prometheus,
    unfiltered,
)
from tests.server.conftest import ROOT, RunningServer, eventually, run_server
from tests.server.wire import EXAMPLES

pytestmark = pytest.mark.skipif(monitoring.PROGRAM is None, reason="prometheus is not installed")

# All ways of asking for images, several r, a deadline that cannot be kept, and a body that is no
# image.
ASKED = (
    "/classify?r=0",
    "/classify?r=16",
    "/classify?r=3",
    "/embed?r=16",
    "/visualize?r=8",
    "/classify?deadline_ms=1",
    "/classify?r=16&confidence=0.5",
)


class Load(threading.Thread):
    """One client that asks without pause, until it is told to stop."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.stopped = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for path, image in zip(
                itertools.cycle(ASKED), itertools.cycle([*EXAMPLES.values(), b"no image"])
            ):
                if self.stopped.wait(0.01):
                    return
                client.post(path, content=image)


@pytest.fixture(scope="module")
def loaded() -> Iterator[RunningServer]:
    with run_server() as server:
        clients = [Load(server.url) for _ in range(3)]
        for client in clients:
            client.start()
        yield server
        for client in clients:
            client.stopped.set()
        for client in clients:
            client.join()


@pytest.fixture(scope="module")
def prometheus(loaded, tmp_path_factory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with run_prometheus(folder, f"127.0.0.1:{loaded.port}") as running:
        # A rate needs two scrapes, and what is made of rules one more evaluation.
        eventually(
            lambda: any(value > 0 for value in running.query("job:tome_refusals:ratio_rate5m")), 90
        )
        eventually(lambda: running.query("job_model:tome_accuracy_expected:ratio_rate5m"), 90)
        yield running


@pytest.mark.parametrize(("title", "query"), queries(), ids=lambda value: value[:60])
def test_the_dashboard(prometheus, title, query):
    if "tome_dtype_speedup" in query and len(cpu_dtypes()) == 1:
        pytest.skip("this processor has one dtype that is fast, so none is compared")
    assert prometheus.present(filled(query)), title


def test_what_keda_asks(prometheus):
    scaled = yaml.safe_load((ROOT / "deploy/kubernetes/keda/scaledobject.yml").read_text())
    (trigger,) = scaled["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    autoscaler = yaml.safe_load((ROOT / "deploy/kubernetes/autoscaling.yml").read_text())
    (metric,) = autoscaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in query
    (waiting,) = prometheus.present(query)
    assert 0 <= waiting < 100


@pytest.mark.parametrize("name", rules("record"))
def test_recording_rules(prometheus, name):
    assert prometheus.present(name), "the rule has recorded nothing"
    assert prometheus.present(rules("record")[name]["expr"])


@pytest.mark.parametrize("name", rules("alert"))
def test_alerts(prometheus, name):
    expression = rules("alert")[name]["expr"]
    prometheus.query(expression)
    assert unfiltered(expression) != expression
    assert prometheus.present(unfiltered(expression)), "the series that it watches do not exist"


def test_no_rule_failed(prometheus):
    groups = httpx.get(f"{prometheus.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in found} == {*rules("record"), *rules("alert")}
    assert [(rule["health"], rule.get("lastError")) for rule in found] == [("ok", None)] * len(
        found
    )


def test_the_choices_of_the_dashboard(prometheus):
    asked = [
        variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"
    ]
    assert [variable["name"] for variable in asked] == ["job", "model"]
    for variable in asked:
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
        assert match is not None
        metric, label = match.groups()
        assert prometheus.label_values(filled(metric), label)


def test_numbers_are_what_they_are_called(prometheus):
    (speedup,) = prometheus.present("job_model:tome_speedup:ratio_rate5m")
    assert 0.1 < speedup < 10
    (expected,) = prometheus.present("job_model:tome_accuracy_expected:ratio_rate5m")
    (original,) = prometheus.present("job_model:tome_accuracy_original:max")
    assert 0.85 < expected <= original < 0.95
    (missed,) = prometheus.present("job:tome_deadline_missed:ratio_rate5m")
    (failed,) = prometheus.present("job:tome_request_failures:ratio_rate5m")
    assert 0 <= missed < 0.5
    assert 0 <= failed < 0.5


def test_every_metric_is_shown_or_watched(loaded):
    text = " ".join(
        [query for _, query in queries()] + [rule["expr"] for rule in rules("alert").values()]
    )
    text += " ".join(rule["expr"] for rule in rules("record").values())
    exported = re.findall(r"# TYPE (\w+) \w+", httpx.get(f"{loaded.url}/metrics", timeout=30).text)
    assert not [name for name in exported if name not in text]
