"""Images/s under Ray Serve on the cores of this machine: one replica with all threads, and two that share them.

python -m benchmarks.ray_serve     (or `make bench-ray`)

Each of the two is started anew in every round, in turns, and gets the same closed loop from `tome-serve load`. What is
printed last is the median of the rounds' ratios.
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
from server.engine.device import usable_cores

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "deploy" / "ray_serve.yaml"
START_SECONDS = 180
_DASHBOARD = re.compile(r"dashboard at \S*?(http://[\d.:]+)")


@dataclass(frozen=True)
class Cluster:
    """A Ray of its own on this machine that runs the application.

    Attributes:
        config: what `serve deploy` takes, to be changed and deployed again.
        folder: where the log and config files are.
        dashboard: address of Ray's own API.
    """

    url: str
    config: dict[str, Any]
    folder: Path
    dashboard: str

    def deploy(self, config: dict[str, Any]) -> None:
        """Have ``config`` take the place of what runs; returns before it has."""
        file = write(config, self.folder / "next.yaml")
        command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(file), "-a", self.dashboard]
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=60)


@contextmanager
def cluster(folder: Path, port: int, replicas: int, cpus: float, **settings: object) -> Iterator[Cluster]:
    """The application of deploy/ray_serve.yaml with so many ``replicas`` of ``cpus`` each, and ``TOME_*`` ``settings``.

    Raises:
        NotReady: it did not come up; ``folder/ray.log`` says why.
    """
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = port
    application = config["applications"][0]
    application["args"] |= {"min_replicas": replicas, "max_replicas": replicas, "cpus": cpus, "gpus": 0}
    application["runtime_env"]["env_vars"] |= {f"TOME_{name.upper()}": str(value) for name, value in settings.items()}
    file, log = write(config, folder / "serve.yaml"), folder / "ray.log"
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=output)
    try:
        dashboard = _wait(process, log)
        yield Cluster(f"http://127.0.0.1:{port}", config, folder, dashboard)
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
    """Of Ray's processes: ours, less settings and a cluster that it may name, and with what the proxy needs."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("TOME_", "RAY_", "OMP_"))}
    return ours | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray_proxy:middlewares",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # it would leave a token in the home directory
    }


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    """Until all replicas are ready; gives the dashboard's address, where Serve says so."""
    end = time.monotonic() + START_SECONDS
    while True:
        text = re.sub(r"\x1b\[\d+m", "", log.read_text(errors="replace"))
        status = ""
        if (found := _DASHBOARD.search(text)) and "Submitted deploy config" in text:
            with suppress(httpx.HTTPError, KeyError):
                details = httpx.get(f"{found[1]}/api/serve/applications/", timeout=10).json()
                status = details["applications"]["tome-serve"]["status"]
            if status == "RUNNING":
                return found[1]
        if status == "DEPLOY_FAILED" or process.poll() is not None or time.monotonic() > end:
            raise NotReady(f"the application did not get ready; {log} ends with\n{text[-2000:]}")
        time.sleep(0.2)


def measure(url: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One closed loop, as `tome-serve load` reports it."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "server", "load", "--url", url, "--connections", str(args.connections)]
    command += ["--duration", str(args.seconds), "--warmup", "2", "--r", args.r, "--json", str(report)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code: 1 if any request failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--r", default="16")
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--config", type=Path, help="models to serve; default: the bundled one")
    args = parser.parse_args(arguments)
    settings = {"log_level": "warning", "levels": "0,16"} | ({"config": args.config.resolve()} if args.config else {})
    cores, ratios, failed = usable_cores(), [], 0
    for number in range(args.rounds):
        rates = {}
        for replicas in (1, 2) if number % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                with cluster(folder, args.port, replicas, cores / replicas, **settings) as running:
                    report = measure(running.url, folder, args)
            rates[replicas] = report["answered_per_s"]
            failed += report["requests"] - report["answered"]
            threads = max(1, int(cores / replicas))
            print(
                f"{replicas} x {threads} threads: {rates[replicas]:.1f} images/s,"
                f" p50 {report['response']['p50']:.0f} ms, outcomes {report['outcomes']}",
                flush=True,
            )
        ratios.append(rates[2] / rates[1])
    print(f"two replicas / one: {statistics.median(ratios):.2f} (of {args.rounds} rounds); failed requests: {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
