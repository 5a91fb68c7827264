"""``tome-serve load``: its flags, and one run in a terminal."""

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
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.api_keys import ClientSecrets, read_client_key
from server.errors import ConfigError
from server.media.modality import Modality
from tome_load.arrivals import Arrivals
from tome_load.report import LoadReport
from tome_load.run import run_load
from tome_load.screen import Bar, print_report
from tome_load.served_model import served_modality
from tome_load.spec import Endpoint, LoadSpec
from tome_load.uploads import Upload, read_uploads

DEFAULT_CONNECTIONS = 8
DEFAULT_SECONDS = 10.0

_STDOUT = Path("-")
_EXIT_FAILURE = 1
_EXIT_INTERRUPTED = 130  # 128 + SIGINT


class LoadCommand(BaseSettings):
    """Send requests to a server; report latency, goodput, refusals, and the r that was used."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    files: list[Path] = Field(
        [],
        description=(
            "Image, sound or video files, or folders of them, as the model takes; default: the"
            " examples, or generated ones."
        ),
    )
    url: str = Field(
        "http://127.0.0.1:8000",
        description="URL of the server, or unix: and the path of its socket.",
    )
    endpoint: Endpoint = Field("classify", description="Endpoint to send requests to.")
    r: str = Field(
        "",
        description=(
            "Schedule; of several, repeated or separated by spaces, each request draws one."
        ),
    )
    model: str = Field("", description="Name of the model; default: the server's first.")
    rate: float | None = Field(
        None,
        description="Open loop: requests a second, sent as planned, before others are answered.",
    )
    arrivals: Arrivals = Field("poisson", description="Distribution of gaps in an open loop.")
    connections: int | None = Field(
        None,
        description=(
            "Closed loop: clients, each of which waits for its answers; default:"
            f" {DEFAULT_CONNECTIONS}."
        ),
    )
    duration: float | None = Field(
        None,
        description=f"Seconds of sending; default: {DEFAULT_SECONDS:g}.",
    )
    requests: int | None = Field(None, description="Number of requests, instead of a duration.")
    warmup: float = Field(
        0.0,
        description="Seconds of the same load beforehand, which do not count.",
    )
    confidence: str = Field(
        "",
        description="Images that are less certain run again at r=0: 0 to 1, or auto.",
    )
    deadline_ms: float | None = Field(
        None,
        description="Deadline in each request; only answers within it are good.",
    )
    timeout: float = Field(60.0, description="Seconds to wait for an answer.")
    seed: int = Field(0, description="The same seed sends the same requests at the same times.")
    api_key_file: Path | None = Field(
        None,
        description="File with the API key; or set TOME_API_KEY.",
    )
    json_file: Path | None = Field(
        None,
        description="Write the report to this JSON file; - is standard output.",
    )
    expect: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Fail unless at least this share of requests gets a good answer.",
    )

    def spec(self) -> LoadSpec:
        """Return the load that the flags specify. Raises `ConfigError`."""
        connections = self.connections
        if self.rate is None and connections is None:
            connections = DEFAULT_CONNECTIONS
        duration = self.duration
        if duration is None and self.requests is None:
            duration = DEFAULT_SECONDS
        key = read_client_key(ClientSecrets(), self.api_key_file)
        return LoadSpec(
            url=self.url,
            uploads=self._uploads(key),
            rate=self.rate,
            arrivals=self.arrivals,
            connections=connections,
            duration=duration,
            requests=self.requests,
            warmup=self.warmup,
            r=tuple(self.r.split()) or ("",),
            endpoint=self.endpoint,
            model=self.model,
            confidence=self.confidence,
            deadline_ms=self.deadline_ms,
            key=key,
            timeout=self.timeout,
            seed=self.seed,
        )

    def _uploads(self, key: str) -> tuple[Upload, ...]:
        """Return what requests carry. Asks the server what its model takes if files do not say."""
        modality = Modality.IMAGE
        if not self.files or any(path.is_dir() for path in self.files):
            modality = served_modality(self.url, self.model, key, self.timeout)
        return read_uploads(self.files, modality)


def load(command: LoadCommand) -> int:
    """Run the load and print the report.

    Returns:
        The exit code: 0; 1 if there was no answer, or fewer good ones than ``expect``; 130 if it
        was interrupted.

    Raises:
        ConfigError: there is no server, or it refuses the request itself.
    """
    spec = command.spec()
    try:
        report, interrupted = _run(_run_until_interrupted(spec))
    except asyncio.CancelledError:
        return _EXIT_INTERRUPTED
    # The JSON on stdout must not be mixed with the tables.
    print_report(report, stderr=command.json_file == _STDOUT)
    if command.json_file is not None:
        _write(report, command.json_file)
    if interrupted:
        return _EXIT_INTERRUPTED
    if not report.answered:
        print("tome-serve: no request was answered", file=sys.stderr)
        return _EXIT_FAILURE
    if command.expect is not None and report.good_share < command.expect:
        print(
            f"tome-serve: {report.good_share:.4f} of the requests got a good answer",
            file=sys.stderr,
        )
        return _EXIT_FAILURE
    return 0


async def _run_until_interrupted(spec: LoadSpec) -> tuple[LoadReport, bool]:
    """Run ``spec``. The first Ctrl-C stops the sending, the second the wait for answers."""
    stop = asyncio.Event()
    task = asyncio.current_task()

    def interrupt() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    # Windows has no such handlers. There Ctrl-C ends the run without a report.
    with suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    async with Bar(spec) as bar:
        report = await run_load(spec, bar.observe, stop)
    return report, stop.is_set()


def _run(main: Coroutine[Any, Any, tuple[LoadReport, bool]]) -> tuple[LoadReport, bool]:
    """Run ``main`` in uvloop if it is installed, else in asyncio's event loop."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    return uvloop.run(main)


def _write(report: LoadReport, path: Path) -> None:
    text = json.dumps(report.as_json(), indent=1) + "\n"
    try:
        if path == _STDOUT:
            sys.stdout.write(text)
        else:
            path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
