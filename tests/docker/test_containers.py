"""The containers for real: ``make test-docker`` builds them with a Docker engine and brings them up
on the CPU.

SERVER_IMAGE names an image that is there already; BASE and TORCH_INDEX go to the build. Where
Prometheus's image cannot be pulled, Debian's is built in its place; without Grafana's its tests are
skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from pathlib import Path

import httpx
import pytest

from tests.docker import stack as docker
from tests.docker.stack import Stack
from tests.server.conftest import ROOT, eventually
from tests.server.wire import EXAMPLES, SNEAKER

pytestmark = pytest.mark.docker

TAG = "tome-serve:test"


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """The images to run, by the variable of the compose file that names them."""
    found = {
        "SERVER_IMAGE": os.environ.get("SERVER_IMAGE", TAG),
        "GRAFANA_IMAGE": docker.image_of("grafana"),
    }
    if found["SERVER_IMAGE"] == TAG:
        docker.build_server(TAG)
    found["PROMETHEUS_IMAGE"] = docker.image_of("prometheus")
    if not docker.has_image(found["PROMETHEUS_IMAGE"]):
        found["PROMETHEUS_IMAGE"] = "tome-prometheus:test"
        base = [f"--build-arg=BASE={os.environ['BASE']}"] if "BASE" in os.environ else []
        folder = ROOT / "tests/docker"
        docker.run(
            "docker", "build", "--network=host", "--tag=tome-prometheus:test", *base,
            f"--file={folder / 'prometheus.Dockerfile'}", str(folder),
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def stack(images):
    services = ["server", "prometheus"] + ["grafana"] * docker.has_image(images["GRAFANA_IMAGE"])
    with docker.bring_up(services, **images) as running:
        yield running


@pytest.fixture(scope="module")
def server(stack) -> Stack:
    """The stack, once the server has answered: within three minutes of its start."""
    eventually(lambda: classify(stack) == 200, 180)
    return stack


def classify(stack: Stack, r: str = "16") -> int:
    try:
        return httpx.post(
            f"{stack.url('server')}/classify?r={r}", content=SNEAKER, timeout=30
        ).status_code
    except httpx.TransportError:
        return 0


class TestServer:
    def test_it_answers_through_the_published_port(self, server):
        answer = httpx.post(
            f"{server.url('server')}/classify?r=16", content=SNEAKER, timeout=30
        ).json()
        assert answer["predictions"][0]["label"] == "Sneaker"
        assert answer["tokens"]["output"] == 11

    def test_the_kernels_were_compiled_into_the_image(self, server):
        code = (
            "from tome_core.backends.cpu import library; from pathlib import Path;"
            " print(*Path(library.__file__).parent.glob('*.so'))"
        )
        assert server.python(code).endswith(".so")

    def test_they_run_where_the_processor_has_what_they_need(self, server):
        (model,) = httpx.get(f"{server.url('server')}/models").json()["models"]
        flags = Path("/proc/cpuinfo").read_text().split()
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags):
            assert model["acceleration"] == "kernels"
        else:
            assert model["acceleration"] in ("operators", "reference")

    def test_it_becomes_healthy(self, server):
        eventually(lambda: server.inspect("server", ".State.Health.Status") == "healthy", 60)

    def test_its_processes_have_no_rights(self, server):
        code = """
import json, pathlib
texts = [path.read_text() for path in pathlib.Path("/proc").glob("[0-9]*/status")]
print(json.dumps([dict(line.split(":", 1) for line in text.splitlines()) for text in texts]))
"""
        processes = json.loads(server.python(code))
        assert any("tome-serve" in process["Name"] for process in processes)
        for process in processes:
            assert set(process["Uid"].split()) == {"10001"}
            assert process["NoNewPrivs"].strip() == "1"
            assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == 0

    def test_it_can_write_to_its_cache_and_nowhere_else(self, server):
        code = """
import os, pathlib
for folder in ("/", "/opt/venv", "/etc", "/cache", "/cache/huggingface/hub", "/tmp"):
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(folder) / "x").write_text("x")
        print(folder)
    except OSError:
        pass
"""
        assert server.python(code).split() == ["/cache", "/cache/huggingface/hub", "/tmp"]
        mounts = json.loads(server.inspect("server", "json .Mounts"))
        assert [
            (mount["Destination"], mount["Type"]) for mount in mounts if mount["Type"] == "volume"
        ] == [("/cache", "volume")]


class TestMonitoring:
    def query(self, stack: Stack, expression: str) -> list[dict]:
        answer = httpx.get(f"{stack.url('prometheus')}/api/v1/query", params={"query": expression})
        return answer.json()["data"]["result"] if answer.status_code == 200 else []

    def test_the_target_is_up_and_the_rules_run(self, server):
        eventually(lambda: self.query(server, 'up{job="tome-serve"} == 1'), 60)
        eventually(lambda: self.query(server, "tome_images_total > 0"), 30)
        eventually(lambda: self.query(server, "job_model:tome_accuracy_original:max"), 60)
        groups = httpx.get(f"{server.url('prometheus')}/api/v1/rules").json()["data"]["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}

    def test_prometheus_becomes_healthy(self, server):
        eventually(lambda: server.inspect("prometheus", ".State.Health.Status") == "healthy", 60)

    def test_grafana_has_the_dashboard_and_its_data(self, server):
        if not server.container("grafana"):
            pytest.skip("the image of Grafana cannot be pulled")
        url = server.url("grafana")
        eventually(lambda: server.inspect("grafana", ".State.Health.Status") == "healthy", 90)
        assert (
            httpx.get(f"{url}/api/dashboards/uid/tome-serve").json()["dashboard"]["title"]
            == "tome-serve"
        )
        proxied = f"{url}/api/datasources/proxy/uid/prometheus/api/v1/query"
        assert httpx.get(proxied, params={"query": "tome_model_info"}).json()["data"]["result"]


def test_a_change_of_the_source_leaves_the_dependencies_as_they_are(images, tmp_path):
    if images["SERVER_IMAGE"] != TAG:
        pytest.skip("SERVER_IMAGE is not built here")
    for name in ("server", "tome_core"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    for name in (
        "pyproject.toml",
        "setup.py",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "Dockerfile",
        ".dockerignore",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
        (tmp_path / name).chmod(0o664)  # as under another umask
    with (tmp_path / "server/__init__.py").open("a") as file:
        file.write("# changed\n")
    docker.build_server(f"{TAG}-changed", tmp_path)
    layers = [
        json.loads(
            docker.run("docker", "image", "inspect", "--format={{json .RootFS.Layers}}", tag)
        )
        for tag in (TAG, f"{TAG}-changed")
    ]
    assert [one == other for one, other in zip(*layers, strict=True)] == [True] * (
        len(layers[0]) - 1
    ) + [False]


class Client(threading.Thread):
    """Sends several images at a time, over and over, and keeps when it asked and the status, 0
    where none came.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.stopped = threading.Event()
        self.answers: dict[str, tuple[float, int]] = {}

    def run(self) -> None:
        files = [("file", ("name", image)) for image in EXAMPLES.values()] * 3
        while not self.stopped.is_set():
            asked = time.monotonic()
            status = 0
            name = f"load-{uuid.uuid4().hex}"
            with contextlib.suppress(httpx.TransportError):
                headers = {"X-Request-ID": name}
                answer = httpx.post(
                    f"{self.url}/classify?r=0", files=files, headers=headers, timeout=60
                )
                status = answer.status_code
                if status == 200:
                    assert all("predictions" in result for result in answer.json()["results"])
            self.answers[name] = asked, status


def test_a_stop_under_load_loses_nothing_that_was_accepted(server):
    """Comes last: after it the server is gone."""
    clients = [Client(server.url("server")) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        eventually(lambda: all(len(client.answers) > 1 for client in clients), 60)
        container = server.container("server")
        stopped = time.monotonic()
        server.compose("stop", "server")
    finally:
        for client in clients:
            client.stopped.set()
        for client in clients:
            client.join()
    assert (
        docker.run(
            "docker", "inspect", "--format={{.State.ExitCode}} {{.State.OOMKilled}}", container
        )
        == "0 false"
    )
    answers = {name: answer for client in clients for name, answer in client.answers.items()}
    assert {status for asked, status in answers.values() if asked < stopped} == {200}
    # Whatever the server says it has answered has reached its client; the others, Docker's proxy
    # turned away.
    lines = [json.loads(line) for line in server.log("server") if '"load-' in line]
    assert {line["request_id"]: line["status"] for line in lines} == {
        name: status for name, (_, status) in answers.items() if status
    }
    assert {status for _, status in answers.values()} <= {0, 200, 503}
