"""Prometheus's configuration and rules by its own tool, and the dashboard as Grafana reads it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from server.api.app import image_routes
from tests.deploy.monitoring import DASHBOARD, PROMETHEUS, queries, rules
from tests.server.conftest import ROOT

PROMTOOL = shutil.which("promtool")
GRAFANA = ROOT / "deploy/grafana"
CASES = yaml.safe_load((PROMETHEUS / "tests/alerts.yml").read_text())["tests"]
OPERATIONS = (ROOT / "docs/operations.md").read_text()


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments", ["check config prometheus.yml", "test rules tests/alerts.yml"]
)
def test_promtool_accepts(arguments):
    command = [PROMTOOL, *arguments.split()]
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", rules("alert"))
def test_every_alert_has_a_firing_and_a_quiet_case(name):
    cases = [
        test for case in CASES for test in case["alert_rule_test"] if test["alertname"] == name
    ]
    assert sorted(bool(case["exp_alerts"]) for case in cases) == [False, True]


@pytest.mark.parametrize("name", rules("alert"))
def test_every_alert_says_what_to_do(name):
    rule = rules("alert")[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "action", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    section = re.search(rf"^### {name}\n\n(.+?)(?=^##|\Z)", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert section, "docs/operations.md has no section of that name"
    assert len(section[1]) > 100


@pytest.mark.parametrize("path", [route.path for route in image_routes()])
def test_what_is_asked_of_requests_for_images_counts_every_route(path):
    expressions = [*(rule["expr"] for rule in rules("record").values())]
    expressions += [query for _, query in queries()]
    patterns = [
        pattern
        for expression in expressions
        for pattern in re.findall(r'\broute=~"([^"]*)"', expression)
    ]
    assert len(patterns) > 20
    for pattern in patterns:
        assert re.fullmatch(pattern, path)


def test_no_section_is_of_an_alert_that_is_gone():
    assert set(re.findall(r"^### (Tome\w+)$", OPERATIONS, re.MULTILINE)) == set(rules("alert"))


def test_panels_do_not_overlap_and_have_numbers_of_their_own():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_panel_asks_the_data_source_that_can_be_chosen():
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert [
                panel["datasource"],
                *(target["datasource"] for target in panel["targets"]),
            ] == [chosen] * (1 + len(panel["targets"]))
            assert (
                len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
            )
    assert len(queries()) > 30


def test_the_data_source_is_provisioned_under_the_name_that_the_dashboard_takes():
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    chosen = next(item for item in DASHBOARD["templating"]["list"] if item["type"] == "datasource")
    assert chosen["current"]["value"] == source["uid"]
    assert source["url"] == "http://prometheus:9090"
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_the_dashboard_lies_where_grafana_looks():
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/tome-serve.yml").read_text())[
        "providers"
    ]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"][
        "volumes"
    ]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
