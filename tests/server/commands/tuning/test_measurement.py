"""All rules must have been measured on the same pictures."""

from __future__ import annotations

import pytest

from server.commands.tuning.measurement import check_same_pictures
from server.commands.tuning.state import RuleRecord
from server.errors import ConfigError


def record(sizes: list[int], *unreadable: str) -> RuleRecord:
    return RuleRecord({}, batch_sizes=sizes, unreadable=dict.fromkeys(unreadable, "broken"))


def test_the_same_pictures_pass() -> None:
    check_same_pictures([], "folder")
    check_same_pictures([record([2, 1], "a.png"), record([2, 1], "a.png")], "folder")


def test_pictures_that_change_meanwhile_are_an_error() -> None:
    with pytest.raises(ConfigError, match="changed meanwhile; measure again with --fresh"):
        check_same_pictures([record([2, 1], "a.png"), record([2], "a.png", "b.png")], "folder")


def test_a_folder_without_a_readable_picture_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no picture in folder can be read; of a.png: broken"):
        check_same_pictures([record([], "a.png")], "folder")
