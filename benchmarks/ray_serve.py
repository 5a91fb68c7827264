"""Images/s under Ray Serve: one replica with all threads, and two that share them.

python -m benchmarks.ray_serve     (or `make bench-ray`)

Both are applications of one Ray, and get the same closed loops from `tome-serve load`: short ones
in turns, so that a machine that becomes slower or faster favours neither, and who comes first
changes from round to round. Ray is started anew after some rounds. Beside images/s stands the CPU
time of an image in each kind of process: on few cores it says what another replica can gain. What
is printed last is the median of the rounds' ratios, and how far they lie apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.servers import STOP_SECONDS, NotReady
from server.hardware import usable_cores

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "deploy" / "ray_serve.yaml"
START_SECONDS = 180
WARM_SECONDS = 3  # of load after a start
SETTLE_SECONDS = 1  # of load before each that counts
SHARE = (
    3  # parts of the cores, one for each replica, as Ray counts; threads are said by the settings
)
KINDS = {
    "engines": "server.engine",
    "replicas": "ServeReplica",
    "proxy": "ProxyActor",
}  # and a part of their commands
OTHERS = "rest of Ray"
_DASHBOARD = re.compile(r"dashboard at \S*?(http://[\d.:]+)")


@dataclass(frozen=True)
class Cluster:
    """A Ray of its own on this machine that runs the application.

    Attributes:
        config: what `serve deploy` takes, to be changed and deployed again.
        folder: where the log and config files are.
        dashboard: address of Ray's own API.
        process: number of the process above all others.
    """

    url: str
    config: dict[str, Any]
    folder: Path
    dashboard: str
    process: int

    def deploy(self, config: dict[str, Any]) -> None:
        """Have ``config`` take the place of what runs; returns before it has."""
        file = write(config, self.folder / "next.yaml")
        command = [
            sys.executable,
            "-m",
            "ray.serve.scripts",
            "deploy",
            str(file),
            "-a",
            self.dashboard,
        ]
        subprocess.run(
            command, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=60
        )


@dataclass(frozen=True)
class Measured:
    """What one load has shown.

    Attributes:
        rate: images/s.
        p50: median milliseconds of an answer.
        failed: requests without an answer.
        cpu_ms: of an image, in each kind of process.
    """

    rate: float
    p50: float
    failed: int
    cpu_ms: dict[str, float]

    def __str__(self) -> str:
        cpu = ", ".join(f"{kind} {milliseconds:.2f}" for kind, milliseconds in self.cpu_ms.items())
        text = f"{self.rate:.1f} images/s, p50 {self.p50:.0f} ms, {self.failed} failed"
        return f"{text}; CPU ms an image: {sum(self.cpu_ms.values()):.2f} ({cpu})"


def application(replicas: int, cpus: float, route: str = "/", **settings: object) -> dict[str, Any]:
    """The application of deploy/ray_serve.yaml with ``replicas`` of ``cpus`` and ``settings``."""
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["applications"][0]
    found |= {
        "name": f"{found['name']}{route.rstrip('/').replace('/', '-')}",
        "route_prefix": route,
    }
    found["args"] |= {"min_replicas": replicas, "max_replicas": replicas, "cpus": cpus, "gpus": 0}
    found["runtime_env"]["env_vars"] |= {
        f"TOME_{name.upper()}": str(value) for name, value in settings.items()
    }
    return found


@contextmanager
def cluster(
    folder: Path, port: int, *applications: dict[str, Any], **variables: str
) -> Iterator[Cluster]:
    """A Ray with ``variables`` in its environment that runs ``applications``.

    Raises:
        NotReady: they did not come up; ``folder/ray.log`` says why.
    """
    config = yaml.safe_load(CONFIG.read_text()) | {"applications": list(applications)}
    config["http_options"]["port"] = port
    file = write(config, folder / "serve.yaml")
    log = folder / "ray.log"
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment() | variables, stdout=output, stderr=output
        )
    try:
        dashboard = _wait(process, log, [each["name"] for each in applications])
        yield Cluster(f"http://127.0.0.1:{port}", config, folder, dashboard, process.pid)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(3 * STOP_SECONDS)
                break


def write(config: dict[str, Any], file: Path) -> Path:
    """``config`` as YAML in ``file``."""
    file.write_text(yaml.safe_dump(config))
    return file


def environment() -> dict[str, str]:
    """Environment of Ray's processes: ours less ``TOME_*`` and a cluster's address."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TOME_", "RAY_", "OMP_"))
    }
    return ours | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray_proxy:middlewares",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # it would leave a token in the home directory
    }


def _wait(process: subprocess.Popen[bytes], log: Path, names: Sequence[str]) -> str:
    """Until all replicas are ready; gives the dashboard's address, where Serve says so."""
    end = time.monotonic() + START_SECONDS
    while True:
        text = re.sub(r"\x1b\[\d+m", "", log.read_text(errors="replace"))
        states: set[str] = set()
        if (found := _DASHBOARD.search(text)) and "Submitted deploy config" in text:
            with suppress(httpx.HTTPError, KeyError):
                details = httpx.get(f"{found[1]}/api/serve/applications/", timeout=10).json()[
                    "applications"
                ]
                states = {details[name]["status"] for name in names}
            if states == {"RUNNING"}:
                return found[1]
        if "DEPLOY_FAILED" in states or process.poll() is not None or time.monotonic() > end:
            raise NotReady(f"the application did not get ready; {log} ends with\n{text[-2000:]}")
        time.sleep(0.2)


def measure(running: Cluster, route: str, args: argparse.Namespace) -> Measured:
    """One closed loop, after another one that warms up."""
    load(running, route, args, SETTLE_SECONDS)
    before = cpu_seconds(running.process)
    report = load(running, route, args, args.seconds)
    answered = report["answered"]
    used = {
        kind: seconds - before.get(kind, 0)
        for kind, seconds in cpu_seconds(running.process).items()
    }
    used["load"] = report["cpu_ms_per_request"] / 1000 * answered
    return Measured(
        report["answered_per_s"],
        report["response"]["p50"],
        report["requests"] - answered,
        {kind: 1000 * seconds / max(1, answered) for kind, seconds in used.items()},
    )


def load(running: Cluster, route: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """What `tome-serve load` reports of so many ``seconds``."""
    report = running.folder / "report.json"
    command = [sys.executable, "-m", "server", "load", "--url", f"{running.url}{route}"]
    command += ["--connections", str(args.connections), "--duration", str(seconds), "--warmup", "0"]
    command += ["--r", args.r, "--json", str(report)]
    subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def cpu_seconds(process: int) -> dict[str, float]:
    """CPU time that each kind of process at or below ``process`` has had."""
    found = dict.fromkeys([*KINDS, OTHERS], 0.0)
    waiting = [process]
    while waiting:
        folder = Path("/proc", str(waiting.pop()))
        with suppress(OSError):  # one that has ended
            for children in folder.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
            command = (folder / "cmdline").read_text(errors="replace")
            user, system = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            kind = next((kind for kind, part in KINDS.items() if part in command), OTHERS)
            found[kind] += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return found


def summary(ratios: Sequence[float]) -> str:
    """The median of ``ratios``, and how far they lie apart."""
    text = f"{statistics.median(ratios):.2f}, the median of {len(ratios)} rounds"
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, method="inclusive")
        text += (
            f"; half of them from {low:.2f} to {high:.2f}, all from {min(ratios):.2f} to"
            f" {max(ratios):.2f}"
        )
    return text


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code: 1 if any request failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--starts", type=int, default=3, help="of Ray; default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=8, help="after each start; default: %(default)s"
    )
    parser.add_argument(
        "--seconds", type=float, default=5, help="of each load; default: %(default)s"
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--r", default="16")
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--config", type=Path, help="models to serve; default: the bundled one")
    what = (
        "of Ray's environment, as often as wanted, such as"
        " RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0"
    )
    parser.add_argument(
        "--env", action="append", default=[], type=_variable, metavar="NAME=VALUE", help=what
    )
    args = parser.parse_args(arguments)
    variables = dict(args.env)
    settings = {"log_level": "warning", "levels": "0,16"} | (
        {"config": args.config.resolve()} if args.config else {}
    )
    cores = usable_cores()
    ratios = []
    failed = 0
    threads = {replicas: max(1, cores // replicas) for replicas in (1, 2)}
    applications = [
        application(n, cores / SHARE, f"/{n}", threads=threads[n], **settings) for n in threads
    ]
    for start in range(args.starts):
        with (
            tempfile.TemporaryDirectory() as name,
            cluster(Path(name), args.port, *applications, **variables) as running,
        ):
            for n in threads:
                load(running, f"/{n}", args, WARM_SECONDS)
            for number in range(start, start + args.rounds):
                found = {}
                for n in (1, 2) if number % 2 == 0 else (2, 1):
                    found[n] = measure(running, f"/{n}", args)
                    failed += found[n].failed
                    print(f"{n} x {threads[n]} threads: {found[n]}", flush=True)
                ratios.append(found[2].rate / found[1].rate)
    print(f"two replicas / one: {summary(ratios)}; failed requests: {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
