"""Sounds whose answers are known, beside the images of `Oracle`."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch

from server.audio.front_end import prepare
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform
from tests.chaos.media_oracle import WINDOWS, MediaModel, assert_apart
from tests.chaos.oracle import Case, Oracle
from tests.hostile.build_sounds import encode, noise
from tests.hostile.sounds import hostile_sounds
from tests.server.engine.loading.tiny_sounds import save_folder, transformers_ast

NAME = "sound"
FRAMES = 256
MAX_WINDOWS = 50  # the longest of the hostile sounds that are right have as many
SCHEDULES = ("0", "2", "7")
SECONDS = (0.3, 2.5, 6.0)
# A sound of many windows takes the slots of other requests, which are then refused.
_MOST_WINDOWS = 3

_TABLE = f"""
[[models]]
name = "{NAME}"
timm = "local-dir:ast"
activation = "softmax"
levels = [0]
"""


class SoundOracle:
    """A tiny AST beside the tiny model of ``images``, and requests whose answers are known.

    Attributes:
        config: of both models; that of images is the default.
        settings: of the server, for which the answers are right.
        good: sounds with what belongs to them, the hostile ones that are right among them.
        bad: sounds of which each has to be refused.
    """

    def __init__(self, images: Oracle, folder: Path) -> None:
        torch.manual_seed(0)
        save_folder(transformers_ast(max_length=FRAMES), folder / "ast")
        tiny = images.config.parent
        table = images.config.read_text()
        for name in ("tiny.safetensors", "labels.txt"):
            table = table.replace(f'"{name}"', f'"{tiny / name}"')
        self.config = folder / "models.toml"
        self.config.write_text(table + _TABLE)
        self.settings = {"max_windows": MAX_WINDOWS}
        self._model = MediaModel(self.config, NAME)
        self.good = self._good()
        self.bad = [
            Case(f"/classify?model={NAME}&r=2", body, frozenset({status}))
            for body, status in hostile_sounds().values()
            if status != 200
        ]

    def _good(self) -> list[Case]:
        """Sounds of one window and of more under every schedule, and the hostile ones."""
        good = []
        for seed, seconds in enumerate(SECONDS):
            body = encode(noise(seconds, 16_000, seed=seed), 16_000, "FLAC")
            inputs = self._inputs(body)
            for r, windows in itertools.product(SCHEDULES, WINDOWS):
                good.append(self._model.classify(body, inputs, r, windows))
                good.append(self._model.embed(body, inputs, r, windows))
        assert_apart(good)
        for body, status in hostile_sounds().values():
            if status == 200 and len(inputs := self._inputs(body)) <= _MOST_WINDOWS:
                good.append(self._model.classify(body, inputs, "2"))
        return good

    def _inputs(self, body: bytes) -> np.ndarray:
        """The model's inputs for a sound."""
        transform = self._model.transform
        assert isinstance(transform, AudioTransform)
        return prepare(body, transform, AudioLimits(max_windows=MAX_WINDOWS)).inputs
