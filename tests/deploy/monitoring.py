"""The rules and the dashboard as data, and a real Prometheus that has them."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.server.conftest import ROOT, eventually, free_port

PROMETHEUS = ROOT / "deploy/prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/tome-serve.json").read_text())
PRESENT_SECONDS = 60.0
PROGRAM = shutil.which("prometheus")


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """All rules of ``kind``, ``record`` or ``alert``, by name."""
    groups = [
        yaml.safe_load(path.read_text())["groups"]
        for path in sorted((PROMETHEUS / "rules").glob("*.yml"))
    ]
    return {
        rule[kind]: rule
        for file in groups
        for group in file
        for rule in group["rules"]
        if kind in rule
    }


def queries() -> list[tuple[str, str]]:
    """Each query of the dashboard, after the title of its panel."""
    return [
        (panel["title"], target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


def filled(query: str, job: str = "tome-serve", interval: str = "30s") -> str:
    """``query`` as Grafana sends it, with all models chosen."""
    return query.replace("$__rate_interval", interval).replace("$job", job).replace("$model", ".*")


def unfiltered(condition: str) -> str:
    """An alert's expression with 0 or 1 for each comparison, so that it has a result whenever its
    series exist.
    """
    # What makes a model fast is one of several labels; the one to be told of is not there on a
    # healthy server.
    condition = condition.replace('kind=~"reference.*"', 'kind=~".+"')
    return re.sub(r"(?<= )(==|!=|<=|>=|<|>)(?= )", r"\1 bool", condition)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[float]:
        """The values of ``expression`` now that are numbers. Raises what it says of a query that
        cannot run.
        """
        answer = httpx.get(
            f"{self.url}/api/v1/query", params={"query": expression}, timeout=30
        ).json()
        assert answer["status"] == "success", answer
        result = answer["data"]["result"]
        samples = (
            [result]
            if answer["data"]["resultType"] == "scalar"
            else [series["value"] for series in result]
        )
        return [value for _, text in samples if math.isfinite(value := float(text))]

    def present(self, expression: str) -> list[float]:
        """The same, once there are any: a scrape that takes too long leaves no series until the
        next one.
        """
        end = time.monotonic() + PRESENT_SECONDS
        while not (found := self.query(expression)) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def label_values(self, metric: str, label: str) -> list[str]:
        """What ``label`` of ``metric`` can be."""
        url = f"{self.url}/api/v1/label/{label}/values"
        return list(httpx.get(url, params={"match[]": metric}, timeout=30).json()["data"])


@contextlib.contextmanager
def run_prometheus(folder: Path, *targets: str) -> Iterator[Prometheus]:
    """Prometheus with our configuration, but for its targets and for how often it looks at them."""
    assert PROGRAM is not None
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        PROGRAM,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        eventually(lambda: is_ready(prometheus), 90)
        yield prometheus
    finally:
        process.terminate()
        process.wait(60)


def is_ready(prometheus: Prometheus) -> bool:
    try:
        return httpx.get(f"{prometheus.url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
