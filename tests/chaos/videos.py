"""Videos, sounds and images that decoders must survive among good ones of each."""

from __future__ import annotations

from tests.chaos import poison
from tests.chaos.deck import Deck
from tests.chaos.harness import Arena
from tests.chaos.media_load import Mix, survive
from tests.chaos.results import Found
from tests.chaos.sound_oracle import SoundOracle
from tests.chaos.video_oracle import VideoOracle

WORKER_MIB = 240  # of a worker that has decoded the largest video


async def run(arena: Arena) -> Found:
    """As many requests as wanted; a third of them have to be refused."""
    mix = mix_of(arena)
    done = f"{mix.kinds} kinds of bad requests among good images, sounds and videos"
    return await survive(arena, "videos", done, mix, WORKER_MIB)


def mix_of(arena: Arena) -> Mix:
    """Requests to a model of each modality."""
    images = arena.oracle
    sounds = SoundOracle(images, arena.folder)
    videos = VideoOracle(sounds, arena.folder)
    return Mix(
        videos.config,
        good=(Deck(images.good), Deck(sounds.good), Deck(videos.good)),
        bad=(Deck(poison.bad_images()), Deck(sounds.bad), Deck(videos.bad)),
        settings=poison.LIMITS | videos.settings,
    )
