"""Videos whose answers are known, beside the sounds and the images of `SoundOracle`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from server.api.pipeline.media_responses import stack_pictures
from server.imaging.visualization import encode_png
from server.media.limits import VideoLimits
from server.media.transforms import VideoTransform
from server.video.contact_sheet import draw_clip
from server.video.front_end import prepare
from tests.chaos.media_oracle import WINDOWS, MediaModel, Windows, assert_apart
from tests.chaos.oracle import Case, picture
from tests.chaos.sound_oracle import NAME as SOUND
from tests.chaos.sound_oracle import SoundOracle
from tests.hostile.build_videos import encode
from tests.hostile.videos import hostile_videos
from tests.server import tiny_clip

NAME = "clip"
CODECS = (("libx264", "mp4"), ("libvpx", "webm"), ("mpeg4", "mov"), ("libvpx-vp9", "matroska"))
FRAMES = 40
GRID = (tiny_clip.TOKENS * tiny_clip.PATCH // tiny_clip.SIDE, tiny_clip.SIDE // tiny_clip.PATCH)
SCHEDULES = ("0", "3", "12", "20:-1", "9,0")


class View(NamedTuple):
    """How many windows of a video are decoded, and what is asked of them."""

    clips: int
    crops: Literal[1, 3]
    windows: tuple[Windows, ...]


# More windows than `MOST_WINDOWS` are decoded, and one of them is run.
VIEWS = (
    View(1, 1, ("mean",)),
    View(2, 1, WINDOWS),
    View(4, 1, WINDOWS),
    View(1, 3, WINDOWS),
    View(16, 1, ("first",)),
    View(5, 3, ("first",)),
)
WRONG = {
    "clips=0": 422,
    "clips=17": 422,
    "clips=x": 422,
    "crops=2": 422,
    "clips=6&crops=3": 422,
    "windows=last": 422,
    "r=99": 422,
    "top_k=9": 422,
    "model=none": 404,
}


class VideoOracle:
    """A tiny model of video beside those of ``sounds``, and requests whose answers are known.

    Attributes:
        config: of all models; that of images is the default.
        settings: of the server, for which the answers are right.
        good: videos with what belongs to them, the hostile ones that are right among them.
        bad: requests of which each has to be refused.
    """

    def __init__(self, sounds: SoundOracle, folder: Path) -> None:
        tiny_clip.write_clip(folder)
        self.config = folder / "models-with-video.toml"
        self.config.write_text(f"{sounds.config.read_text()}{tiny_clip.TABLE}levels = [0]\n")
        self.settings = sounds.settings
        self._model = MediaModel(self.config, NAME)
        assert isinstance(self._model.transform, VideoTransform)
        self._transform = self._model.transform
        bodies = [moving(seed) for seed in range(len(CODECS))]
        self.good = [*self._known(bodies), *self._hostile_good(), *self._pictures(bodies)]
        self.bad = [*hostile(), *wrong(bodies[0]), *foreign(sounds, bodies[0])]

    def _known(self, bodies: list[bytes]) -> list[Case]:
        """Each of ``bodies`` by each view, under schedules in turn."""
        cases = []
        schedules = itertools.cycle(SCHEDULES)
        for body, (clips, crops, outputs) in itertools.product(bodies, VIEWS):
            inputs = self._inputs(body, clips, crops)
            more = f"&clips={clips}&crops={crops}"
            for windows in outputs:
                cases.append(self._model.classify(body, inputs, next(schedules), windows, more))
                cases.append(self._model.embed(body, inputs, next(schedules), windows, more))
        assert_apart(cases)
        return cases

    def _hostile_good(self) -> Iterator[Case]:
        for body, status in hostile_videos().values():
            if status == 200:
                yield self._model.classify(body, self._inputs(body), "3")

    def _pictures(self, bodies: list[bytes]) -> Iterator[Case]:
        """Contact sheets of two clips: known where nothing is merged, any where something is."""
        unmerged = np.arange(tiny_clip.TOKENS)
        path = f"/visualize?model={NAME}&clips=2&windows=each"
        for body in bodies:
            clips = self._inputs(body, clips=2)
            sheets = [draw_clip(clip, unmerged, 0, GRID, self._transform) for clip in clips]
            picture = encode_png(stack_pictures(sheets))
            yield Case(f"{path}&r=0", body, frozenset({200}), picture=picture)
            yield Case(f"{path}&r=12", body, frozenset({200}))

    def _inputs(self, body: bytes, clips: int = 1, crops: Literal[1, 3] = 1) -> np.ndarray:
        """The model's inputs for a video."""
        transform = replace(self._transform, clips=clips, crops=crops)
        return prepare(body, transform, VideoLimits()).inputs


def moving(seed: int) -> bytes:
    """A pattern that moves: each seed has one, a codec and a container of its own."""
    codec, form = CODECS[seed]
    tiles = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    pattern = tiles.repeat(8, axis=0).repeat(8, axis=1)
    frames = (np.roll(pattern, (2 * number, 3 * number), axis=(0, 1)) for number in range(FRAMES))
    return encode(codec, form, FRAMES, frames=frames)


def hostile() -> Iterator[Case]:
    """Videos that have to be refused."""
    for body, status in hostile_videos().values():
        if status != 200:
            yield Case(f"/classify?model={NAME}&r=3", body, frozenset({status}))


def wrong(body: bytes) -> Iterator[Case]:
    """A good video with parameters that are wrong."""
    for query, status in WRONG.items():
        query = query if "model=" in query else f"model={NAME}&{query}"
        yield Case(f"/classify?{query}", body, frozenset({status}))


def foreign(sounds: SoundOracle, body: bytes) -> Iterator[Case]:
    """Bodies of one modality, and parameters of video, for models of another."""
    images = "/classify?"
    of_sound = f"/classify?model={SOUND}&"
    of_video = f"/classify?model={NAME}&"
    sound = sounds.good[0].body
    for path, content, status in (
        (f"{images}r=0", body, 415),
        (f"{of_sound}r=0", body, 415),
        (f"{of_video}r=0", sound, 415),
        (f"{of_video}r=0", picture(0), 415),
        (f"{images}clips=2", picture(0), 422),
        (f"{of_sound}clips=2", sound, 422),
        (f"{of_sound}crops=3", sound, 422),
    ):
        yield Case(path, content, frozenset({status}))
