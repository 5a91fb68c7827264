"""When clients get the latest cost models. No clock: times are arguments."""

from __future__ import annotations

# Packing and unpacking a cost model takes as long as several jobs, and each client gets it.
INTERVAL_SECONDS = 0.1


class CostModelNews:
    """The models whose cost model has changed since clients got it last.

    Every batch changes one. Clients get that of a model at most every `INTERVAL_SECONDS`, and get
    the last one even if no batch follows.
    """

    def __init__(self) -> None:
        self._sent: dict[str, float] = {}  # when, by model
        self._changed: set[str] = set()

    def is_due(self, model: str, now: float) -> bool:
        """Record that a batch has changed ``model``. Return whether clients should get it now."""
        if now - self._sent.get(model, -INTERVAL_SECONDS) < INTERVAL_SECONDS:
            self._changed.add(model)
            return False
        self._record_sent(model, now)
        return True

    def take_due(self, now: float) -> list[str]:
        """Return the models that have changed and that clients should get now."""
        due = [model for model in self._changed if now - self._sent[model] >= INTERVAL_SECONDS]
        for model in due:
            self._record_sent(model, now)
        return due

    def seconds_to_next(self, now: float) -> float | None:
        """Return the seconds until a model that has changed is due; None if none has."""
        if not self._changed:
            return None
        first = min(self._sent[model] for model in self._changed)
        return max(0.0, first + INTERVAL_SECONDS - now)

    def _record_sent(self, model: str, now: float) -> None:
        self._sent[model] = now
        self._changed.discard(model)
