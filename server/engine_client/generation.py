"""A generation: the engines of one reading of the catalog, as an API process sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from server.engine_client.link import EngineLink
from server.engine_client.served_models import combine
from server.ipc.control import EngineUp
from server.ipc.messages import ModelInfo
from server.ipc.shared_memory import Slots


@dataclass(eq=False)
class Generation:
    """The engines of one reading of the catalog; a request belongs to one generation to its end.

    Attributes:
        engines: indices of its engines, as far as they are known.
        aliases: by the further name, the name of its model.
        models: by name, the default first; they stay while engines restart.
        links: to the engines that are ready, by the index of the engine.
        lost: links to processes that may not have ended.
        opening: engines that are up and have no link yet.
        memory: its slots; set when the first of its engines is up.
        leases: how many holds on slots are for it.
        released: whether it will get no job any more.
    """

    number: int
    engines: tuple[int, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    models: dict[str, ModelInfo] = field(default_factory=dict)
    links: dict[int, EngineLink] = field(default_factory=dict)
    lost: dict[int, EngineLink] = field(default_factory=dict)
    opening: dict[int, EngineUp] = field(default_factory=dict)
    memory: Slots = field(init=False)
    leases: int = 0
    released: bool = False
    reports: dict[int, tuple[ModelInfo, ...]] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)

    @property
    def all_given_up(self) -> bool:
        """Whether none of its engines will ever take jobs again."""
        return bool(self.engines) and self.given_up.issuperset(self.engines)

    @property
    def unused(self) -> bool:
        """Whether nothing of this process is left that belongs to it."""
        return not (self.leases or self.links or self.lost or self.opening)

    def has(self, engine: int) -> bool:
        """Whether ``engine`` belongs to it, or to one of its processes."""
        known: Iterable[Iterable[int]] = (self.links, self.lost, self.opening, self.reports)
        return engine in self.engines or any(engine in engines for engines in known)

    def update_models(self) -> bool:
        """Combine the models of all its engines that are not given up; whether there are any."""
        reports = [models for _, models in sorted(self.reports.items())]
        if not reports:
            return False
        names: dict[str, list[str]] = {}
        for alias, name in self.aliases.items():
            names.setdefault(name, []).append(alias)
        self.models = {
            model.name: replace(
                model, generation=self.number, aliases=tuple(names.get(model.name, ()))
            )
            for model in combine(reports)
        }
        return True
