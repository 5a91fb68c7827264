"""All settings, read once from flags, environment variables ``TOME_*`` and defaults, in this order.

Components receive the values they use, never these objects.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.hardware import has_gpu, machine_defaults, runs_on_gpu, usable_cores
from server.media.settings import MediaSettings
from server.system.stop_plan import StopPlan
from tome_core.schedule import Schedule

VERSION = "0.1.0"  # as in pyproject.toml

Names = Annotated[tuple[str, ...], NoDecode]
Counts = Annotated[tuple[int, ...], NoDecode]

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+")
_ANY = "*"  # in a list of proxies or origins


class ModelSettings(BaseSettings):
    """Which models to run, and how. All commands have these settings."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    config: Path | None = Field(
        None,
        description="TOML file with the models to serve; README describes its fields.",
    )
    models: Names = Field(
        (),
        description="Models to serve, comma-separated: of timm, spoken-language, motion.",
    )
    device: str = Field(
        "auto",
        description="Device such as cpu, cuda or cuda:0; auto selects a GPU if there is one.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description=(
            "Type of the computation; auto: on a CPU the faster of float32 and bfloat16, on a GPU"
            " bfloat16 or float16."
        ),
    )
    cpu_isa: Literal["auto", "avx512_bf16", "avx512", "none"] = Field(
        "auto",
        description=(
            "Highest instruction set of the CPU kernels; auto: the processor's; none: PyTorch's"
            " operators run."
        ),
    )
    threads: int = Field(
        0,
        ge=0,
        description="CPU threads of the model; 0: one per core, divided among the engines.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Lowest severity that is logged.",
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_machine_defaults(cls, data: Any) -> Any:
        """Use the defaults of this machine's cores and GPU for what is not set."""
        device = str(data.get("device") or cls.model_fields["device"].default)
        defaults = machine_defaults(usable_cores(), gpu=runs_on_gpu(device, has_gpu()))
        return {name: defaults[name] for name in defaults if name in cls.model_fields} | data

    @field_validator(
        "models",
        "forwarded_allow_ips",
        "cors_origins",
        mode="before",
        check_fields=False,
    )
    @classmethod
    def _split_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return _split(value)


class Settings(MediaSettings, ModelSettings):
    """Settings of the server."""

    device: str = Field(
        "auto",
        description=(
            "Device such as cpu, cuda:0 or auto; of several (cuda:0,cuda:1) each runs an engine."
        ),
    )
    host: str = Field(
        "127.0.0.1",
        description="Addresses to listen on, comma-separated; :: listens on IPv4 and IPv6.",
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        description="Port to listen on; 0 selects a free one.",
    )
    uds: Path | None = Field(
        None,
        description="Path of a Unix socket to listen on, in place of host and port.",
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Separate port for /metrics; default: the port of the server.",
    )
    root_path: str = Field(
        "",
        description="Path prefix under which a proxy serves this server, such as /vision.",
    )
    forwarded_allow_ips: Names = Field(
        ("127.0.0.1", "::1"),
        description="Proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted; *: all.",
    )
    cors_origins: Names = Field(
        (),
        description="Origins allowed to send requests (CORS), such as https://app.example; *: all.",
    )
    default_r: str = Field(
        "0",
        description="r of requests that do not set it: 8, 16:-1, 30,0,5,20, or auto.",
    )
    levels: Counts = Field(
        (0, 4, 8, 12, 16),
        description="Values of r to check at start and to list for models of images whose entry"
        " names none; 0 is always one of them.",
    )
    max_batch: int = Field(
        32,
        ge=1,
        le=1024,
        description="Largest batch, in images; default on a GPU: 128.",
    )
    max_batch_work: float = Field(
        0,
        ge=0,
        description=(
            "Largest batch by its FLOPs, counted in images at r=0; 0: those of max_batch images."
        ),
    )
    queue_limit: int = Field(
        256,
        ge=1,
        le=65536,
        description="Images admitted at once; more are refused with 503; default on a GPU: 1024.",
    )
    max_connections: int = Field(
        2048,
        ge=1,
        description="Open connections; one more closes the connection that is idle for longest.",
    )
    max_body_bytes: int = Field(
        20_000_000,
        ge=1,
        description="Largest request body, in bytes.",
    )
    max_pixels: int = Field(50_000_000, ge=1, description="Largest image, in pixels.")
    max_side: int = Field(16384, ge=1, description="Longest side of an image, in pixels.")
    max_inflight_bytes: int = Field(
        256_000_000,
        ge=1,
        description="Request bodies held in memory at once, in bytes.",
    )
    header_timeout: float = Field(
        10.0,
        gt=0,
        description="Seconds within which the header of a request must arrive.",
    )
    body_timeout: float = Field(
        10.0,
        gt=0,
        description="Seconds within which the body of a request must arrive.",
    )
    send_timeout: float = Field(
        60.0,
        gt=0,
        description="Seconds after which a connection is closed whose client stops reading.",
    )
    target_ms: float = Field(
        1000.0,
        gt=0,
        description="Target latency of requests without a deadline, in milliseconds.",
    )
    api_workers: int = Field(
        1,
        ge=1,
        le=64,
        description=(
            "Processes that speak HTTP and decode images; default: one for every 16 cores, with a"
            " GPU for every 4, at most 8."
        ),
    )
    decode_threads: int = Field(
        2,
        ge=1,
        le=64,
        description=(
            "Threads of each API process that decode images; default with a GPU: its part of all"
            " cores less 4, from 2 to 8."
        ),
    )
    drain_timeout: float = Field(
        StopPlan.drain,
        gt=0,
        description="Seconds in which requests in flight may finish after SIGTERM.",
    )
    start_timeout: float = Field(
        600.0,
        gt=0,
        description="Seconds within which the models must load and warm up.",
    )
    heartbeat_timeout: float = Field(
        2.0,
        ge=1,
        le=20,
        description="Seconds without a heartbeat after which an engine is restarted.",
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses to listen on."""
        return tuple(_split(self.host))

    @property
    def target_seconds(self) -> float:
        """`target_ms` in seconds."""
        return self.target_ms / 1000

    @property
    def audio_body_bytes(self) -> int:
        """`max_audio_bytes`, but no more than all bodies may have together."""
        return min(self.max_audio_bytes, self.max_inflight_bytes)

    @property
    def video_body_bytes(self) -> int:
        """`max_video_bytes`, but no more than all bodies may have together."""
        return min(self.max_video_bytes, self.max_inflight_bytes)

    def decode_workers_of(self, worker: int) -> int:
        """Return how many decode workers an API process has."""
        return share(self.decode_workers, worker, self.api_workers)

    @property
    def stop_plan(self) -> StopPlan:
        """The times of a stop."""
        return StopPlan(self.drain_timeout)

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of each engine."""
        return tuple(device.strip() for device in self.device.split(","))

    @field_validator("levels", mode="before")
    @classmethod
    def _split_levels(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return _split(value)

    @field_validator("levels")
    @classmethod
    def _add_level_0(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(level < 0 for level in value):
            raise ValueError("levels must not be negative")
        return tuple(sorted({0, *value}))

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        if not _split(value):
            raise ValueError("host must name an address, such as 127.0.0.1")
        return value

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        path = value.rstrip("/")
        if path and not _ROOT_PATH.fullmatch(path):
            raise ValueError(
                "root_path must be a path such as /vision, of letters, digits and . _ ~ - only"
            )
        return path

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            if network != _ANY:
                ip_network(network)  # its ValueError says what is wrong
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != _ANY and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin such as https://app.example or"
                    " http://localhost:3000"
                )
        return value

    @field_validator("default_r")
    @classmethod
    def _normalize_schedule(cls, value: str) -> str:
        if value == "auto":
            return value
        return str(Schedule.parse(value))

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if "decode_workers" not in self.model_fields_set:
            object.__setattr__(self, "decode_workers", max(self.decode_workers, self.api_workers))
        for name in ("queue_limit", "decode_workers"):
            if getattr(self, name) < self.api_workers:
                raise ValueError(
                    f"{name} must not be smaller than api_workers, {self.api_workers} here: each"
                    " API process has a part of it"
                )
        return self

    @model_validator(mode="after")
    def _check_body_limits(self) -> Self:
        # The other defaults are cut to `max_inflight_bytes`, which a server of images may have set
        # lower.
        given = self.model_fields_set.intersection(("max_audio_bytes", "max_video_bytes"))
        for name in ("max_body_bytes", *sorted(given)):
            if self.max_inflight_bytes < getattr(self, name):
                raise ValueError(
                    f"max_inflight_bytes must not be smaller than {name}, the largest single body"
                )
        return self


def _split(value: str) -> list[str]:
    """Split a comma-separated list; empty items do not count."""
    items = [item.strip() for item in value.split(",")]
    return [item for item in items if item]


def share(total: int, worker: int, workers: int) -> int:
    """Return the part of ``total`` that belongs to one of ``workers`` API processes."""
    return len(range(worker, total, workers))
