"""The answers of ``/admin/reload``, as ``/openapi.json`` describes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Reload(BaseModel):
    """What came of a reload of the catalog."""

    result: Literal["loaded", "aliases", "unchanged", "failed"] = Field(
        description="loaded: other engines serve now; aliases: models have other names;"
        " unchanged: the catalog and its files are as before; failed: the models of before serve"
        " on."
    )
    reason: str | None = Field(description="Why it failed.")
    models: list[str] = Field(description="The models that serve after it.")
    aliases: dict[str, str]
    seconds: float


class ReloadState(BaseModel):
    """Whether a reload is under way, and the last one that has ended."""

    running: bool
    last: Reload | None
