"""Sounds that a decoder must survive among good images and sounds."""

from __future__ import annotations

from tests.chaos.deck import Deck
from tests.chaos.harness import Arena
from tests.chaos.media_load import Mix, survive
from tests.chaos.results import Found
from tests.chaos.sound_oracle import SoundOracle

WORKER_MIB = 120  # of a worker that has decoded the largest sound


async def run(arena: Arena) -> Found:
    """As many requests as wanted; a third of them are sounds that have to be refused."""
    oracle = SoundOracle(arena.oracle, arena.folder)
    mix = Mix(
        oracle.config,
        good=(Deck(arena.oracle.good), Deck(oracle.good)),
        bad=(Deck(oracle.bad),),
        settings=oracle.settings,
    )
    done = f"{mix.kinds} kinds of bad sounds among good images and sounds"
    return await survive(arena, "sounds", done, mix, WORKER_MIB)
