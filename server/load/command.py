"""``tome-serve load``: its flags, and the life of one run in a terminal."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from server.api_keys import ClientSecrets, read_key
from server.errors import ConfigError
from server.load.arrivals import Arrivals
from server.load.pictures import read_pictures
from server.load.report import LoadReport
from server.load.run import run_load
from server.load.screen import Bar, print_report
from server.load.spec import Endpoint, LoadSpec

DEFAULT_CONNECTIONS = 8
DEFAULT_SECONDS = 10.0


class LoadCommand(BaseSettings):
    """Send a server requests, and say what became of them: latency, goodput, refusals, and the r that was used."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_",
        frozen=True,
        extra="ignore",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        env_ignore_empty=True,
    )

    images: CliPositionalArg[list[Path]] = Field(
        [],
        description="Image files, or folders of them; default: the examples, or a generated JPEG.",
    )
    url: str = Field("http://127.0.0.1:8000", description="The server.")
    endpoint: Endpoint = Field("classify", description="What is asked for.")
    r: str = Field(
        "",
        description=(
            "Schedule; several, repeated or separated by spaces, are drawn from per request."
        ),
    )
    model: str = Field("", description="Which model; default the server's first.")
    rate: float | None = Field(
        None, description="Open loop: requests a second, sent whether others are answered or not."
    )
    arrivals: Arrivals = Field("poisson", description="Gaps of an open loop.")
    connections: int | None = Field(
        None,
        description=(
            f"Closed loop: clients that wait for their answer; default {DEFAULT_CONNECTIONS}."
        ),
    )
    duration: float | None = Field(
        None, description=f"Seconds of sending; default {DEFAULT_SECONDS:g}."
    )
    requests: int | None = Field(None, description="How many requests, instead of a duration.")
    warmup: float = Field(0.0, description="Seconds of the same load before, which do not count.")
    deadline_ms: float | None = Field(
        None, description="Sent along; only answers within it are good ones."
    )
    timeout: float = Field(
        60.0, description="Seconds after which an answer is no longer waited for."
    )
    seed: int = Field(0, description="The same seed sends the same requests at the same times.")
    api_key_file: Path | None = Field(
        None, description="File with the API key; TOME_API_KEY holds one too."
    )
    json_file: Path | None = Field(
        None, description="Write the report as JSON here, also --json; - is standard output."
    )
    expect: float | None = Field(
        None, ge=0, le=1, description="Fail unless this share of requests gets a good answer."
    )

    def spec(self) -> LoadSpec:
        """The load that the flags describe. Raises `ConfigError`."""
        neither = self.rate is None and self.connections is None
        return LoadSpec(
            url=self.url,
            pictures=read_pictures(self.images),
            rate=self.rate,
            arrivals=self.arrivals,
            connections=DEFAULT_CONNECTIONS if neither else self.connections,
            duration=(
                DEFAULT_SECONDS
                if self.duration is None and self.requests is None
                else self.duration
            ),
            requests=self.requests,
            warmup=self.warmup,
            r=tuple(self.r.split()) or ("",),
            endpoint=self.endpoint,
            model=self.model,
            deadline_ms=self.deadline_ms,
            key=read_key(ClientSecrets(), self.api_key_file),
            timeout=self.timeout,
            seed=self.seed,
        )


def load(command: LoadCommand) -> int:
    """Make the load and print the report.

    Returns:
        The exit code: 0; 1 where nothing was answered, or too little for ``expect``; 130 where it
        was interrupted.

    Raises:
        ConfigError: there is no server, or it finds fault with the request itself.
    """
    spec = command.spec()
    try:
        report, interrupted = _run(_until_interrupted(spec))
    except asyncio.CancelledError:
        return 130
    to_stdout = command.json_file == Path("-")
    print_report(report, stderr=to_stdout)
    if command.json_file is not None:
        _write(report, command.json_file)
    if interrupted:
        return 130
    if not report.answered:
        print("tome-serve: no request was answered", file=sys.stderr)
        return 1
    if command.expect is not None and report.good_share < command.expect:
        print(
            f"tome-serve: {report.good_share:.4f} of the requests got a good answer",
            file=sys.stderr,
        )
        return 1
    return 0


async def _until_interrupted(spec: LoadSpec) -> tuple[LoadReport, bool]:
    """Run ``spec``. The first Ctrl-C ends the sending, the second the waiting for what was sent."""
    stop = asyncio.Event()
    task = asyncio.current_task()

    def interrupt() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    with suppress(
        NotImplementedError
    ):  # Windows has no such handlers; there Ctrl-C ends it without a report
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    async with Bar(spec) as bar:
        report = await run_load(spec, bar.observe, stop)
    return report, stop.is_set()


def _run(main: Coroutine[Any, Any, tuple[LoadReport, bool]]) -> tuple[LoadReport, bool]:
    """Run ``main`` in the fastest event loop that there is."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    return uvloop.run(main)


def _write(report: LoadReport, path: Path) -> None:
    text = json.dumps(report.as_json(), indent=1) + "\n"
    try:
        if path == Path("-"):
            sys.stdout.write(text)
        else:
            path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
