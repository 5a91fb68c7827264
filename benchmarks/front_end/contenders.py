"""The servers that take turns: their command lines, and how each takes a body."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from benchmarks.front_end.bodies import SIZE, Content
from benchmarks.front_end.tiny_network import BATCH, CHANNELS, CLASSES, DECODERS
from benchmarks.wrk import Body

OURS = "ours"
MOSEC = "mosec"
LITSERVE = "litserve"
ECHO = "echo"
NAMES = (OURS, MOSEC, LITSERVE, ECHO)

_MODEL = "tiny"
_PATCH = 56  # the patch embedding costs the same for every size; all else next to nothing
_ARGUMENTS = {"patch_size": _PATCH, "embed_dim": CHANNELS, "depth": 1, "num_heads": 1}
_TABLE = f"""
[[models]]
name = "{_MODEL}"
timm = "vit_tiny_patch16_224"
checkpoint = "tiny.safetensors"
labels = "labels.txt"
interpolation = "bicubic"
crop_pct = 1.0
crop_mode = "squash"
model_args = {{ patch_size = {_PATCH}, embed_dim = {CHANNELS}, depth = 1, num_heads = 1 }}
"""


@dataclass(frozen=True)
class Contender:
    """One server with one number of API processes.

    Attributes:
        api_processes: None where there is no such number.
        command: without the option of the port.
        variables: of its environment.
        port_variable: for the port; without, the option ``--port`` names it.
        address: returns the path and the body for what is sent.
    """

    name: str
    api_processes: int | None
    command: Sequence[str]
    address: Callable[[Content], tuple[str, Body]]
    variables: Mapping[str, str] = field(default_factory=dict)
    port_variable: str = ""

    @property
    def title(self) -> str:
        """For progress."""
        if self.api_processes is None:
            return self.name
        return f"{self.name}, API processes: {self.api_processes}"

    def at_port(self, port: int) -> tuple[list[str], dict[str, str]]:
        """Return the command and the variables that have it listen on ``port``."""
        if self.port_variable:
            return list(self.command), {**self.variables, self.port_variable: str(port)}
        return [*self.command, "--port", str(port)], dict(self.variables)


def write_model(folder: Path) -> Path:
    """Save a ViT of one block with random weights in ``folder``; returns its models file."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **_ARGUMENTS)
    save_file(vit.state_dict(), folder / "tiny.safetensors")
    (folder / "labels.txt").write_text("".join(f"class {index}\n" for index in range(CLASSES)))
    config = folder / "models.toml"
    config.write_text(_TABLE)
    return config


def ours(config: Path, api_processes: int) -> Contender:
    """Our server with the models file ``config``."""
    settings = {
        "CONFIG": config,
        "API_WORKERS": api_processes,
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "THREADS": 1,
        "LEVELS": 0,
        "MAX_BATCH": BATCH,
        "QUEUE_LIMIT": 1024,
        "LOG_LEVEL": "warning",
    }

    def address(content: Content) -> tuple[str, Body]:
        if content.is_tensor:
            return f"/v2/models/{_MODEL}/infer", content.infer_request()
        return "/classify?r=0", content.bare()

    return Contender(
        OURS,
        api_processes,
        _module("server", "serve"),
        address,
        {f"TOME_{name}": str(value) for name, value in settings.items()},
        port_variable="TOME_PORT",
    )


def mosec() -> Contender:
    """Its HTTP server is one process of many threads, and not in Python."""
    return Contender(
        MOSEC,
        None,
        _module("benchmarks.front_end.mosec_peer", "--log-level", "warning"),
        lambda content: ("/tensor" if content.is_tensor else "/inference", content.bare()),
    )


def litserve(api_processes: int) -> Contender:
    """With ``num_api_servers``."""
    command = _module("benchmarks.front_end.litserve_peer", "--api-servers", str(api_processes))
    return Contender(LITSERVE, api_processes, command, lambda content: ("/predict", content.form()))


def echo(api_processes: int) -> Contender:
    """Bare uvicorn."""
    options = ("--workers", str(api_processes), "--no-access-log", "--log-level", "warning")
    command = _module("uvicorn", "benchmarks.front_end.echo:app", *options)
    return Contender(ECHO, api_processes, command, lambda content: ("/", content.bare()))


def describe(name: str) -> str:
    """Say in one sentence what a contender runs."""
    description = {
        OURS: (
            f"our server with a timm ViT of 1 block, {CHANNELS} channels and patches of {_PATCH},"
            f" at r=0, float32, TOME_THREADS=1, TOME_MAX_BATCH={BATCH}; a file is the body of"
            " `/classify`, a tensor that of `/v2`"
        ),
        MOSEC: (
            f"mosec, whose first stage has {DECODERS} processes that decode by Pillow,"
            f" and whose second one runs batches of at most {BATCH} requests; a tensor goes to such"
            " a second one directly; the body is the file or the tensor"
        ),
        LITSERVE: (
            f"LitServe with {DECODERS} inference workers, which decode by"
            f" Pillow in `decode_request` and run batches of at most {BATCH} requests; the number"
            " of API processes is its `num_api_servers`; the file or the tensor is a file of a form"
        ),
        ECHO: (
            "uvicorn with uvloop and httptools and an application that reads the body and answers"
            " its length, the floor; the number of API processes is its `--workers`"
        ),
    }
    return description[name]


def describe_network() -> str:
    """Say in one sentence what the peers compute."""
    return (
        f"The peers resize to {SIZE} x {SIZE} by Pillow (bicubic), as our server does, and run a"
        f" patch embedding of stride 16 to {CHANNELS} channels, mean and linear, in one thread of"
        " torch; all but the echo answer the best 5 classes of each image as JSON."
    )


def make(name: str, config: Path, several: Sequence[int]) -> list[Contender]:
    """Return a contender with each of ``several`` numbers of API processes.

    Args:
        config: models file of our server.
    """
    if name == MOSEC:
        return [mosec()]
    if name == OURS:
        return [ours(config, count) for count in several]
    return [{LITSERVE: litserve, ECHO: echo}[name](count) for count in several]


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-W", "ignore", "-m", name, *arguments)
