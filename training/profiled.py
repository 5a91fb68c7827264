"""Profiles of the bundled model and of those it is compared with, each checked to be its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.catalog.entries import BUNDLED, ModelSpec, read_catalog
from server.catalog.profiles import (
    ProfileRow,
    read_conditions,
    read_rule_profile,
    weights_digest,
)
from server.errors import ConfigError
from tome_core.rules import RULE_NAMES, RuleName

# What accuracies and speeds can be compared by.
COMPARABLE = ("data", "images", "batch", "device", "dtype", "threads")


@dataclass(frozen=True)
class Source:
    """Where a model's entry and its profile are, from the root of the repository.

    Attributes:
        merging: the rule whose rows of the profile are meant.
    """

    config: str
    profile: str
    merging: RuleName = "paper"

    @property
    def command(self) -> str:
        """The command that writes the profile."""
        is_bundled = BUNDLED.match(self.config)
        config = "" if is_bundled else f" --config {self.config}"
        rules = " ".join(RULE_NAMES)
        return f'tome-serve evaluate{config} --merging "{rules}" --profile {self.profile}'


PAPER = Source("server/bundled/models.toml", "server/bundled/fashion-mnist.profile.json")
DENSE = Source("training/dense.toml", "training/dense.profile.json")
CPU_TWIN = Source("training/twin.toml", "training/twin.profile.json")


@dataclass(frozen=True)
class Profiled:
    """A model under one rule.

    Attributes:
        rows: by the text of their schedule, r=0 first; each has an accuracy.
        conditions: of the measurement.
    """

    source: Source
    rows: Mapping[str, ProfileRow]
    conditions: Mapping[str, Any]

    def row(self, r: str) -> ProfileRow:
        """Return the row of a schedule.

        Raises:
            ConfigError: there is none.
        """
        if r not in self.rows:
            raise ConfigError(
                f"{self.source.profile} has no r={r}; measure it again: {self.source.command}"
            )
        return self.rows[r]

    def accuracy(self, r: str) -> float:
        """Return the accuracy under a schedule, in percent; raises as `row`."""
        accuracy = self.row(r).accuracy
        assert accuracy is not None
        return accuracy

    def loss(self, r: str) -> float:
        """Return the points of accuracy below r=0; raises as `row`."""
        return self.accuracy("0") - self.accuracy(r)


def read_rules(root: Path, source: Source) -> dict[RuleName, Profiled]:
    """Read the same profile by every rule; raises as `read_profiled`."""
    return {rule: read_profiled(root, replace(source, merging=rule)) for rule in RULE_NAMES}


def read_profiled(root: Path, source: Source) -> Profiled:
    """Read a profile of the model whose entry stands beside it.

    Args:
        root: of the repository.

    Raises:
        ConfigError: it is missing, or of other weights than the entry says, or has no accuracies by
            the rule.
    """
    path = root / source.profile
    again = f"measure it: {source.command}"
    if not path.is_file():
        raise ConfigError(f"there is no {source.profile}; {again}")
    (spec,) = read_catalog(root / source.config, (), profiles=False)
    conditions = read_conditions(path)
    _check_weights(source, spec, conditions, again)
    rows = read_rule_profile(path, source.merging, spec.prop_attn)
    if "0" not in rows or any(row.accuracy is None for row in rows.values()):
        raise ConfigError(f"{source.profile} has no accuracy at every r; {again}")
    return Profiled(source, rows, conditions)


def _check_weights(
    source: Source, spec: ModelSpec, conditions: Mapping[str, Any], again: str
) -> None:
    assert spec.checkpoint is not None
    measured = conditions.get("weights")
    if measured is None:
        raise ConfigError(f"{source.profile} does not say which weights it is of; {again}")
    digest = weights_digest(spec.checkpoint)
    if measured != digest:
        raise ConfigError(
            f"{source.profile} is of the weights {measured}, but {spec.checkpoint.name} has"
            f" {digest}; {again}"
        )


def check_comparable(first: Profiled, other: Profiled) -> None:
    """Check that both were measured on the same images, on a device of the same kind.

    Raises:
        ConfigError: they were not.
    """
    for name in COMPARABLE:
        values = (first.conditions.get(name), other.conditions.get(name))
        if values[0] != values[1]:
            raise ConfigError(
                f"{first.source.profile} has {name} {values[0]}, but {other.source.profile} has"
                f" {values[1]}; measure one of them again: {first.source.command}, or"
                f" {other.source.command}"
            )
