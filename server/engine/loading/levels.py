"""The levels of a model: the values of r that are checked at start and listed."""

from __future__ import annotations

from collections.abc import Sequence

from server.catalog.entries import ModelSpec
from server.errors import ConfigError
from server.media.modality import Modality
from tome_core.split import most_mergeable

# Of all input tokens, where neither the entry nor the settings say: 0, 4, 8, 12 and 16 of the 197
# tokens of a ViT of images.
SHARES = (0, 0.02, 0.04, 0.06, 0.08)


def resolve_levels(
    spec: ModelSpec,
    modality: Modality,
    configured: Sequence[int],
    tokens: int,
    prefix: int,
) -> tuple[int, ...]:
    """Return the levels of a model, ascending, with 0 among them.

    Those of its entry; else for images those of ``configured`` that it has tokens for; else shares
    of its tokens.

    Args:
        spec: the entry.
        modality: of the model.
        configured: of the setting ``TOME_LEVELS``.
        tokens, prefix: number of all tokens and of prefix tokens at the input.

    Raises:
        ConfigError: the entry has a level that the model has too few tokens for.
    """
    largest = most_mergeable(tokens, prefix)
    if spec.levels is not None:
        _check(spec, largest, tokens)
        return tuple(sorted({0, *spec.levels}))
    if modality is Modality.IMAGE:
        return tuple(sorted({0, *(level for level in configured if level <= largest)}))
    return tuple(sorted({min(round(share * tokens), largest) for share in SHARES}))


def _check(spec: ModelSpec, largest: int, tokens: int) -> None:
    too_large = [level for level in spec.levels or () if level > largest]
    if too_large:
        raise ConfigError(
            f"model {spec.name}: levels: r = {too_large[0]} is more than {largest}, the most that"
            f" can merge of its {tokens} tokens"
        )
