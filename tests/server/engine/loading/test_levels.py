"""The levels of a model: its entry's, those of the setting, or shares of its tokens."""

from __future__ import annotations

import pytest

from server.catalog.entries import ModelSpec
from server.engine.loading.levels import resolve_levels
from server.errors import ConfigError
from server.media.modality import Modality

SETTING = (0, 4, 8, 120)


def levels(modality: Modality, tokens: int, entry: tuple[int, ...] | None = None) -> list[int]:
    spec = ModelSpec(name="m", timm="vit", levels=entry)
    return list(resolve_levels(spec, modality, SETTING, tokens, prefix=1))


def test_images_have_those_of_the_setting_that_they_have_tokens_for() -> None:
    assert levels(Modality.IMAGE, 197) == [0, 4, 8]
    assert levels(Modality.IMAGE, 1025) == [0, 4, 8, 120]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1214, [0, 24, 49, 73, 97]),
        (513, [0, 10, 21, 31, 41]),
        (17, [0, 1]),
        (2, [0]),
    ],
)
def test_sounds_have_shares_of_their_tokens(tokens: int, expected: list[int]) -> None:
    assert levels(Modality.AUDIO, tokens) == expected


@pytest.mark.parametrize("modality", Modality)
def test_the_entry_decides(modality: Modality) -> None:
    assert levels(modality, 197, (16, 4)) == [0, 4, 16]
    assert levels(modality, 197, ()) == [0]
    with pytest.raises(ConfigError, match=r"r = 99 is more than 98, .* of its 197 tokens"):
        levels(modality, 197, (4, 99))
