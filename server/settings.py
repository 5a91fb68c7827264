"""All settings, read once: command-line flags, then environment ``TOME_*``, then the defaults below.

Components receive the values they use, never these objects.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.hardware import has_gpu, usable_cores
from tome_core.schedule import Schedule

Names = Annotated[tuple[str, ...], NoDecode]
Counts = Annotated[tuple[int, ...], NoDecode]


class ModelSettings(BaseSettings):
    """Which models, and how they run: shared by all commands."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_",
        frozen=True,
        extra="ignore",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        env_ignore_empty=True,
    )

    config: Path | None = Field(
        None, description="TOML file with the models to serve; README says what it holds."
    )
    models: Names = Field(
        (), description="timm model names to serve, comma-separated; weights come from the hub."
    )
    device: str = Field(
        "auto", description="cpu, cuda, cuda:0 ...; auto takes a GPU where there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description=(
            "Of weights and activations; auto: bfloat16 if the device has it, else float16, on a"
            " CPU float32."
        ),
    )
    threads: int = Field(
        0, ge=0, description="CPU threads of the model; 0 takes one per core, shared by engines."
    )

    @field_validator(
        "models", "forwarded_allow_ips", "cors_origins", mode="before", check_fields=False
    )
    @classmethod
    def _split_names(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()]
            if isinstance(value, str)
            else value
        )


class Settings(ModelSettings):
    """Settings of the server."""

    device: str = Field(
        "auto", description="As cpu, cuda:0 or auto; several (cuda:0,cuda:1) run an engine on each."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Own port of /metrics; default: the same port."
    )
    root_path: str = Field(
        "", description="Path under which a proxy serves this server, such as /vision."
    )
    forwarded_allow_ips: Names = Field(
        ("127.0.0.1", "::1"),
        description="Proxies whose X-Forwarded-For and -Proto are believed; *: all.",
    )
    cors_origins: Names = Field(
        (), description="Origins whose pages may ask, such as https://app.example; *: all."
    )
    default_r: str = Field(
        "0", description="Of requests that name no r: 8, 16:-1, 30,0,5,20, or auto."
    )
    levels: Counts = Field(
        (0, 4, 8, 12, 16), description="Values of r that are warmed up, timed and listed, from 0."
    )
    max_batch: int = Field(
        32, ge=1, le=1024, description="Most images in one forward pass; default on a GPU: 128."
    )
    max_batch_work: float = Field(
        0,
        ge=0,
        description=(
            "Most work (FLOPs) in one forward pass, in images at r=0; 0: that of max_batch images."
        ),
    )
    queue_limit: int = Field(
        256,
        ge=1,
        le=65536,
        description="Most images admitted at once; more are refused, 503; default on a GPU: 1024.",
    )
    max_connections: int = Field(
        2048, ge=1, description="Most connections; one more closes the longest idle one."
    )
    max_body_bytes: int = Field(20_000_000, ge=1, description="Largest request body, in bytes.")
    max_pixels: int = Field(50_000_000, ge=1, description="Largest image, in pixels.")
    max_side: int = Field(16384, ge=1, description="Longest side of an image, in pixels.")
    max_inflight_bytes: int = Field(
        256_000_000, ge=1, description="Most bytes of bodies held at once."
    )
    header_timeout: float = Field(
        10.0, gt=0, description="Seconds in which a request's header must arrive."
    )
    body_timeout: float = Field(
        10.0, gt=0, description="Seconds in which a request's body must arrive."
    )
    send_timeout: float = Field(
        60.0, gt=0, description="Seconds in which a client that does not read must read on."
    )
    target_ms: float = Field(
        1000.0, gt=0, description="Milliseconds in which a request without a deadline ought to run."
    )
    decode_threads: int = Field(
        2,
        ge=1,
        le=64,
        description="Threads that decode images; default on a GPU: cores less 4, from 2 to 8.",
    )
    drain_timeout: float = Field(
        30.0, gt=0, description="Seconds that accepted requests may take after SIGTERM."
    )
    start_timeout: float = Field(
        600.0, gt=0, description="Seconds in which the models must load and warm up."
    )
    heartbeat_timeout: float = Field(
        2.0,
        ge=1,
        le=20,
        description="Seconds without a heartbeat after which an engine is replaced.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line."
    )

    @property
    def devices(self) -> tuple[str, ...]:
        """One for each engine."""
        return tuple(part.strip() for part in self.device.split(","))

    @model_validator(mode="before")
    @classmethod
    def _suit_a_gpu(cls, data: Any) -> Any:
        """What is not set is as a GPU needs it, where the models run on one."""
        device = str(data.get("device") or cls.model_fields["device"].default)
        return gpu_defaults(usable_cores()) | data if runs_on_gpu(device, has_gpu()) else data

    @field_validator("levels", mode="before")
    @classmethod
    def _split_counts(cls, value: object) -> object:
        return (
            [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("levels")
    @classmethod
    def _from_zero(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(level < 0 for level in value):
            raise ValueError("levels must not be negative")
        return tuple(sorted({0, *value}))

    @field_validator("root_path")
    @classmethod
    def _is_path(cls, value: str) -> str:
        value = value.rstrip("/")
        if value and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value):
            raise ValueError(
                "root_path must be a path such as /vision, of letters, digits and . _ ~ - only"
            )
        return value

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "*":
                ip_network(name)  # what is wrong with it is in its ValueError
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin; one is https://app.example or http://localhost:3000"
                )
        return value

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.max_inflight_bytes < self.max_body_bytes:
            raise ValueError(
                "max_inflight_bytes must not be smaller than max_body_bytes, the largest single"
                " body"
            )
        return self

    @field_validator("default_r")
    @classmethod
    def _is_schedule(cls, value: str) -> str:
        return value if value == "auto" else str(Schedule.parse(value))


def runs_on_gpu(device: str, gpu_here: bool) -> bool:
    """Whether an engine of the setting ``device`` runs on a GPU.

    Args:
        gpu_here: whether ``auto`` finds one.
    """
    kinds = {part.strip().split(":")[0] for part in device.split(",")}
    return "cuda" in kinds or ("auto" in kinds and gpu_here)


def gpu_defaults(cores: int) -> dict[str, int]:
    """Defaults that keep a GPU busy: it takes as long for a few images as for many, and one core feeds only a few.

    Args:
        cores: that the server may use; four of them are left to its processes. More than eight
            threads would only wait for one another, and each may hold a large image.
    """
    return {"max_batch": 128, "queue_limit": 1024, "decode_threads": min(max(cores - 4, 2), 8)}
