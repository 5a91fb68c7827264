"""The project's own compose files, brought up by a real Docker engine under names and ports that
nobody else has.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.server.conftest import ROOT, free_port

FILES = ("docker-compose.yml", "deploy/compose.cpu.yml")


def run(*command: str, check: bool = True, **environment: str) -> str:
    """What ``command`` prints."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or not check, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip()


def compose() -> list[str]:
    """The command that there is: Docker's plugin, or docker-compose."""
    plugin = (
        subprocess.run(
            ["docker", "compose", "version"], capture_output=True, check=False
        ).returncode
        == 0
    )
    return ["docker", "compose"] if plugin else ["docker-compose"]


def image_of(service: str) -> str:
    """The image that the compose file names by default."""
    text = yaml.safe_load((ROOT / FILES[0]).read_text())["services"][service]["image"]
    match = re.fullmatch(r"\$\{(\w+):-(.+)\}", text)
    assert match is not None
    return match[2]


def has_image(name: str) -> bool:
    """Whether the engine has it, or can pull it."""
    commands = (["docker", "image", "inspect", name], ["docker", "pull", "--quiet", name])
    return any(
        subprocess.run(command, capture_output=True, check=False).returncode == 0
        for command in commands
    )


def build_server(tag: str, context: Path = ROOT) -> None:
    """Build the image; BASE, EXTRAS and TORCH_INDEX come from the environment, as in compose."""
    arguments = [
        f"--build-arg={name}={os.environ[name]}"
        for name in ("BASE", "EXTRAS", "TORCH_INDEX")
        if name in os.environ
    ]
    run("docker", "build", "--network=host", "--quiet", f"--tag={tag}", *arguments, str(context))


@dataclass
class Stack:
    """Containers of one compose project."""

    environment: dict[str, str]
    ports: dict[str, int]
    project: str = field(default_factory=lambda: f"tome-test-{os.getpid()}")

    def compose(self, *arguments: str) -> str:
        files = [part for name in FILES for part in ("--file", name)]
        return run(
            *compose(),
            "--project-name",
            self.project,
            *files,
            *arguments,
            check=True,
            **self.environment,
        )

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    def container(self, service: str) -> str:
        return self.compose("ps", "--quiet", service) or self.compose(
            "ps", "--all", "--quiet", service
        )

    def inspect(self, service: str, what: str) -> str:
        return run("docker", "inspect", "--format", f"{{{{{what}}}}}", self.container(service))

    def log(self, service: str) -> list[str]:
        """The lines that it wrote to stderr."""
        command = ["docker", "logs", self.container(service)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stderr.splitlines()

    def python(self, code: str) -> str:
        """What ``code`` prints inside the server's container."""
        return run("docker", "exec", self.container("server"), "python", "-c", code)


@contextlib.contextmanager
def bring_up(services: list[str], **images: str) -> Iterator[Stack]:
    """Start ``services`` on free ports of this machine, and remove all of them at the end, with
    their volumes.
    """
    assert shutil.which("docker")
    ports = {name: free_port() for name in ("server", "prometheus", "grafana")}
    environment = {f"{name.upper()}_PORT": str(port) for name, port in ports.items()} | images
    stack = Stack(environment, ports)
    try:
        stack.compose("up", "--detach", "--no-build", *services)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "5")
