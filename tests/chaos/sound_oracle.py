"""Sounds whose answers are known: computed here, window by window, without a server."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from server.audio.front_end import prepare
from server.catalog.entries import read_catalog
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import load_model
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform
from tests.chaos.oracle import Case, Oracle
from tests.hostile.build_sounds import encode, noise
from tests.hostile.sounds import hostile_sounds
from tests.server.engine.loading.tiny_sounds import save_folder, transformers_ast
from tome_core.schedule import Schedule

NAME = "sound"
FRAMES = 256
MAX_WINDOWS = 50  # the longest of the hostile sounds that are right have as many
SCHEDULES = ("0", "2", "7")
SECONDS = (0.3, 2.5, 6.0)
# A sound of many windows takes the slots of other requests, which are then refused.
_MOST_WINDOWS = 3
# Large bodies would take all of the time.
_SMALL_BYTES = 300_000
_SHARE_OF_LARGE = 0.01

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
        good: sounds with their scores, the hostile ones that are right among them.
        bad: sounds of which each has to be refused.
        largest: the one of them that takes the most memory.
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
        _, spec = read_catalog(self.config, ())
        device = torch.device("cpu")
        self._runner = Runner(load_model(spec, device, torch.float32, levels=(0,)), device)
        bodies = [
            encode(noise(seconds, 16_000, seed=seed), 16_000, "FLAC")
            for seed, seconds in enumerate(SECONDS)
        ]
        self.good = [self._case(body, r) for body in bodies for r in SCHEDULES]
        self.good += [
            self._case(body, "2")
            for body, status in hostile_sounds().values()
            if status == 200 and len(self._windows(body)) <= _MOST_WINDOWS
        ]
        self.bad = [
            Case(f"/classify?model={NAME}&r=2", body, frozenset({status}))
            for body, status in hostile_sounds().values()
            if status != 200
        ]
        self.largest = max(self.bad, key=lambda case: len(case.body))
        self._large = [case for case in self.bad if len(case.body) > _SMALL_BYTES]
        self._small = [case for case in self.bad if len(case.body) <= _SMALL_BYTES]

    def draw_bad(self, random: random.Random) -> Case:
        """Any sound that has to be refused."""
        is_large = random.random() < _SHARE_OF_LARGE
        return random.choice(self._large if is_large else self._small)

    def _case(self, body: bytes, r: str) -> Case:
        """The request for ``body`` under ``r``: the mean over its windows."""
        classes = len(self._runner.model.labels)
        schedule = Schedule.parse(r)
        outputs = self._runner.run(
            [ImageInput(window, schedule, classes) for window in self._windows(body)]
        )
        scores = np.zeros(classes)
        for output in outputs:
            scores[list(output.classes)] += np.array(output.scores) / len(outputs)
        path = f"/classify?model={NAME}&r={r}&top_k={classes}"
        return Case(path, body, frozenset({200}), scores=tuple(scores.tolist()))

    def _windows(self, body: bytes) -> npt.NDArray[np.float32]:
        """The model's inputs for a sound."""
        transform = self._runner.model.transform
        assert isinstance(transform, AudioTransform)
        return prepare(body, transform, AudioLimits(max_windows=MAX_WINDOWS)).inputs
