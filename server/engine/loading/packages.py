"""The packages that decode what a model takes, where they are an extra of this distribution."""

from __future__ import annotations

from importlib import import_module

from server.catalog.entries import ModelSpec
from server.engine.loading.modality import NOUNS
from server.errors import ConfigError
from server.media.modality import Modality

_PACKAGES = {
    Modality.AUDIO: ("soundfile", "soxr"),
    Modality.VIDEO: ("av",),
}


def require_packages(spec: ModelSpec, modality: Modality) -> None:
    """Raise `ConfigError` unless the packages that decode ``modality`` can be imported."""
    for name in _PACKAGES.get(modality, ()):
        try:
            import_module(name)
        except (ImportError, OSError) as error:  # OSError: a library in C is missing
            raise ConfigError(
                f"model {spec.name} takes {NOUNS[modality]}, which needs {name} ({error}); run: pip"
                f" install 'tome-serve[{modality}]'"
            ) from error
