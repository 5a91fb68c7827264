"""The container files, checked without Docker: they parse, agree with the server's settings and
with one another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.api_keys import Secrets
from server.settings import Settings
from server.system.stop_plan import StopPlan

ROOT = Path(__file__).parents[2]
SETTINGS = {f"TOME_{name.upper()}" for name in (*Settings.model_fields, *Secrets.model_fields)}


class UniqueKeys(yaml.SafeLoader):
    """YAML that names a key twice is refused, as `docker compose` does; PyYAML and docker-compose
    1.29 let it pass.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice the same key{node.start_mark}: {sorted(keys)}"
        return super().construct_mapping(node, deep)


def load(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(), UniqueKeys)


def server(name: str = "docker-compose.yml") -> dict[str, Any]:
    return load(name)["services"]["server"]


def default(value: str) -> str:
    """What ``${NAME:-default}`` gives where NAME is not set."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", value)


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match is not None
    minutes, rest = match.groups()
    return 60 * int(minutes or 0) + int(rest or 0)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as ``(INSTRUCTION, rest)``, comments left out and continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace(
        "\\\n", " "
    )
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in text.splitlines()
        if line.strip()
    ]


def final_stage() -> dict[str, str]:
    """The last stage's instructions; of several of a kind the last."""
    lines = instructions()
    start = max(index for index, (name, _) in enumerate(lines) if name == "FROM")
    return dict(lines[start:])


def test_image_runs_as_a_numeric_user_who_is_not_root() -> None:
    assert final_stage()["USER"] == "10001:10001"


def test_image_starts_the_server_without_a_shell_in_between() -> None:
    stage = final_stage()
    assert json.loads(stage["ENTRYPOINT"]) == ["tome-serve"]
    assert json.loads(stage["CMD"]) == ["serve"]


def test_last_stage_only_copies() -> None:
    assert "RUN" not in final_stage()


def test_dependencies_are_installed_before_the_source_is_copied() -> None:
    lines = instructions()
    installed = next(index for index, (_, rest) in enumerate(lines) if "--requirement" in rest)
    assert installed < lines.index(("COPY", ". ."))


@pytest.mark.parametrize(
    ("extras", "added"), [("", set()), ("video", {"av"}), (" plot video ", {"av", "matplotlib"})]
)
def test_image_has_the_extras_that_the_build_names(
    tmp_path: Path, extras: str, added: set[str]
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = next(rest for name, rest in instructions() if name == "RUN" and "tomllib" in rest)
    _, *arguments = json.loads(command)
    environment = os.environ | {"EXTRAS": extras}
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, check=True)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    names = {re.split(r"[<>=;]", line)[0] for line in lines}
    assert {"torch", "soundfile", "soxr"} <= names
    assert names & {"av", "matplotlib"} == added


def test_probe_may_fail_for_as_long_as_the_models_may_take_to_load() -> None:
    probe = final_stage()["HEALTHCHECK"]
    assert "/readyz" in probe
    period = re.search(r"--start-period=(\S+)", probe)
    assert period is not None
    assert seconds(period[1]) >= Settings.model_fields["start_timeout"].default
    assert isinstance(json.loads(probe[probe.index("[") :]), list)


def test_image_sets_only_settings_that_exist() -> None:
    names = set(re.findall(r"\b(TOME_\w+)=", final_stage()["ENV"]))
    assert {"TOME_HOST", "TOME_PORT"} <= names <= SETTINGS


def test_builder_is_sent_nothing_but_what_it_needs() -> None:
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {
        "pyproject.toml",
        "setup.py",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "NOTICE",
        "server",
        "tome_core",
        "tome_load",
        "tome_top",
    }


def test_compose_hands_on_every_setting() -> None:
    names = {name for name in server()["environment"] if name.startswith("TOME_")}
    # Inside the container the address is fixed; what is published says `ports`.
    assert names == SETTINGS - {"TOME_HOST", "TOME_PORT", "TOME_UDS", "TOME_METRICS_PORT"}


def test_compose_repeats_no_default_wrongly() -> None:
    environment = server()["environment"]
    for name, value in environment.items():
        if value is not None:
            assert (
                float(default(value))
                == Settings.model_fields[name.removeprefix("TOME_").lower()].default
            )


def test_grace_period_covers_the_drain() -> None:
    grace = seconds(default(server()["stop_grace_period"]))
    assert grace > StopPlan().total
    rest = StopPlan(drain=0).total
    assert f"plus {rest:g} s" in (ROOT / "deploy" / "README.md").read_text("utf-8")
    assert f"twice that and {rest:g} s" in (ROOT / "docs" / "operations.md").read_text("utf-8")


@pytest.mark.parametrize("service", ["server", "prometheus", "grafana"])
def test_services_have_no_rights_that_they_do_not_need(service: str) -> None:
    options = load("docker-compose.yml")["services"][service]
    assert options["read_only"] is True
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert options["pids_limit"] > 0
    assert "mem_limit" in options
    assert all(default(port).startswith("127.0.0.1:") for port in options["ports"])


def test_gpu_is_reserved_unless_the_cpu_file_is_named() -> None:
    reserved = server("docker-compose.override.yml")["deploy"]["resources"]["reservations"][
        "devices"
    ]
    assert [(device["driver"], device["capabilities"]) for device in reserved] == [
        ("nvidia", ["gpu"])
    ]
    # Compose joins lists of devices: one in docker-compose.yml could not be taken back.
    assert "deploy" not in server()
    assert "deploy" not in server("deploy/compose.cpu.yml")


def test_cpu_file_takes_a_cpu_only_torch() -> None:
    override = server("deploy/compose.cpu.yml")
    assert default(override["build"]["args"]["TORCH_INDEX"]).endswith("/cpu")
    assert default(override["image"]) != default(server()["image"])
    assert set(override["environment"]) <= SETTINGS


def installed(*command: str) -> bool:
    return (
        bool(shutil.which(command[0]))
        and subprocess.run([*command, "version"], capture_output=True).returncode == 0
    )


@pytest.mark.parametrize(
    "command", [["docker", "compose"], ["docker-compose"]], ids=["plugin", "docker-compose"]
)
@pytest.mark.parametrize(
    "files", [[], ["docker-compose.yml", "deploy/compose.cpu.yml"]], ids=["gpu", "cpu"]
)
def test_compose_accepts_the_files(files: list[str], command: list[str]) -> None:
    if not installed(*command):
        pytest.skip(f"{' '.join(command)} is not installed")
    flags = [part for name in files for part in ("-f", name)]
    done = subprocess.run(
        [*command, *flags, "config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("nvidia" in done.stdout) == (not files)


def test_prometheus_scrapes_the_server() -> None:
    (job,) = load("deploy/prometheus/prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert (
        "./deploy/prometheus:/etc/prometheus:ro"
        in load("docker-compose.yml")["services"]["prometheus"]["volumes"]
    )


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_images_of_others_are_pinned_and_probed(service: str) -> None:
    options = load("docker-compose.yml")["services"][service]
    assert re.search(r":v?\d+\.\d+\.\d+$", default(options["image"]))
    assert options["healthcheck"]["test"][0] == "CMD"
