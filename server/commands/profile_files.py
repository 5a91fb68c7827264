"""Profiles to which ``tome-serve evaluate`` adds, one task after the other.

What one task measured stays when the other is measured again, if model and weights are the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from server.catalog.entries import ModelSpec
from server.catalog.profiles import (
    ProfileRow,
    read_conditions,
    read_profile,
    weights_digest,
    write_profile,
)
from server.errors import ConfigError

# What ``--task embed`` measures; `ProfileRow` says what each is.
_EMBEDDING_FIELDS = (
    "cosine",
    "cosine_low",
    "cosine_high",
    "cosine_p1",
    "cosine_p5",
    "recall_1",
    "recall_10",
    "mixed_recall_1",
    "mixed_recall_10",
)
_EMBEDDINGS = "embeddings"  # the member of a profile that says on what these were measured


@dataclass(frozen=True)
class KnownProfile:
    """What a profile has before something is added to it."""

    rows: Sequence[ProfileRow] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)


def model_identity(spec: ModelSpec) -> dict[str, object]:
    """Return what a profile names its model by: its name, and the digest of its weights.

    Raises:
        ConfigError: the weights cannot be read.
    """
    identity: dict[str, object] = {"model": spec.name}
    if spec.checkpoint is not None:
        identity["weights"] = weights_digest(spec.checkpoint)
    return identity


def open_profile(path: Path, identity: Mapping[str, object]) -> KnownProfile:
    """Return what ``path`` has, to which the quality of embeddings may be added.

    Args:
        path: of the profile, which may be missing.
        identity: see `model_identity`.

    Raises:
        ConfigError: it is no profile, or one of another model or other weights, or of unknown
            rules, or it cannot be written.
    """
    if not path.exists():
        return KnownProfile()
    known = KnownProfile(read_profile(path), read_conditions(path))
    if not _is_of(known.conditions, identity):
        raise ConfigError(f"{path} is of another model or other weights; name another --profile")
    if any(row.merging is None or row.prop_attn is None for row in known.rows):
        raise ConfigError(
            f"{path} does not say under which rule it was measured; name another --profile"
        )
    if not os.access(path, os.W_OK):
        raise ConfigError(f"cannot write {path}: Permission denied")
    return known


def _is_of(conditions: Mapping[str, Any], identity: Mapping[str, object]) -> bool:
    """Return whether a profile is of that model; where it names no weights, by the name alone."""
    if conditions.get("model") != identity["model"]:
        return False
    return "weights" not in conditions or conditions["weights"] == identity.get("weights")


def write_embeddings(
    path: Path,
    known: KnownProfile,
    rows: Sequence[ProfileRow],
    identity: Mapping[str, object],
    conditions: Mapping[str, object],
) -> None:
    """Add the quality of embeddings to what is known, which keeps its other values and its speeds.

    Raises:
        ConfigError: the file cannot be written.
    """
    metadata = {**identity, **(known.conditions or conditions), _EMBEDDINGS: dict(conditions)}
    write_profile(path, with_embeddings(known.rows, rows), metadata)


def write_accuracies(
    path: Path, rows: Sequence[ProfileRow], conditions: Mapping[str, object]
) -> None:
    """Write the rows, beside the quality of embeddings that ``path`` has of the same weights.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        known = KnownProfile(read_profile(path), read_conditions(path))
    except ConfigError:
        known = KnownProfile()  # nothing to keep
    embeddings = known.conditions.get(_EMBEDDINGS)
    if embeddings is not None and _is_of(known.conditions, conditions):
        measured = [row for row in known.rows if row.cosine is not None]
        rows = with_embeddings(rows, measured)
        conditions = {**conditions, _EMBEDDINGS: embeddings}
    write_profile(path, rows, conditions)


def with_embeddings(rows: Sequence[ProfileRow], measured: Sequence[ProfileRow]) -> list[ProfileRow]:
    """Return ``rows`` with the quality of embeddings of those ``measured``.

    A row takes it from that of the same rule and schedule. Those without a counterpart follow.
    """
    remaining = {_key(row): row for row in measured}
    found = []
    for row in rows:
        other = remaining.pop(_key(row), None)
        if other is not None:
            row = replace(row, **{name: getattr(other, name) for name in _EMBEDDING_FIELDS})
        found.append(row)
    return [*found, *remaining.values()]


def _key(row: ProfileRow) -> tuple[object, ...]:
    return row.merging, row.prop_attn, row.r
