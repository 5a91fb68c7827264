"""Which answer belongs to which request: computed here, image by image, without a server."""

from __future__ import annotations

import io
import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from server.catalog.entries import read_catalog
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import load_model
from server.imaging.decode import decode
from server.media.transforms import ImageTransform
from tests.chaos.client import Reply, encode
from tests.server.engine.tiny import write_tiny
from tome_core.schedule import Schedule

PICTURES = 24
# No two of them merge alike before the last block, after which the class token, which is all that
# is read, is done.
SCHEDULES = ("0", "1", "2", "3", "4", "6", "8", "3:-1", "2,5", "0,7", "1,0,6")
DEPTH = 4
TOLERANCE = 1e-4
LIMIT = 50_000_000


@dataclass(frozen=True)
class Case:
    """One request, and what may come back.

    Attributes:
        allowed: statuses that are right beside those that every request may get.
        features, scores: what belongs to it, where an answer does.
        windows: the scores of each window, where the answer is to have them.
        picture: the PNG that belongs to it; empty where any will do.
    """

    path: str
    body: bytes
    allowed: frozenset[int]
    features: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    windows: tuple[tuple[float, ...], ...] = ()
    picture: bytes = b""

    @property
    def route(self) -> str:
        return self.path.partition("?")[0]

    @property
    def values(self) -> tuple[float, ...]:
        """All numbers that belong to it."""
        return self.features + self.scores + tuple(itertools.chain(*self.windows))

    def request(self, **headers: str) -> bytes:
        accept = {"accept": "application/octet-stream"} if self.route == "/embed" else {}
        return encode("POST", self.path, self.body, **accept, **headers)

    def is_right(self, reply: Reply) -> bool:
        """Whether an answer with status 200 is this request's own."""
        if self.route == "/visualize":
            return reply.body.startswith(self.picture or b"\x89PNG")
        if self.route == "/embed":
            return near(np.frombuffer(reply.body, "<f4").tolist(), self.features)
        answer = json.loads(reply.body)
        given = scores_of(answer)
        for window in answer.get("windows", ()):
            given += scores_of(window)
        return f"r={answer['r_requested']}&" in f"{self.path}&" and near(given, self.values)


def scores_of(answer: dict[str, Any]) -> list[float]:
    """The scores of an answer, or of one of its windows, in order of the classes."""
    best = sorted((each["index"], each["score"]) for each in answer["predictions"])
    return [score for _, score in best]


def near(given: list[float], expected: tuple[float, ...]) -> bool:
    return len(given) == len(expected) and bool(
        np.allclose(given, expected, rtol=0, atol=TOLERANCE)
    )


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(seed: int, fault: int = 0) -> bytes:
    """A picture that the tiny model takes as it is; its first value tells the engine of `faulty`
    what to do.
    """
    pixels = np.random.default_rng(seed).integers(0, 200, (32, 32, 3), np.uint8)
    pixels[0, 0, 0] = fault
    return png(pixels)


class Oracle:
    """The tiny model in ``folder``, and requests whose answers are known."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        torch.set_num_threads(1)  # more would wait for one another on cores that the servers use
        self.config = write_tiny(folder, DEPTH, seed)
        (spec,) = read_catalog(self.config, ())
        self._runner = Runner(
            load_model(spec, torch.device("cpu"), torch.float32), torch.device("cpu")
        )
        self.good = self._good()  # now: computing them later would hold up all clients at once

    def case(self, body: bytes, r: str, embed: bool, more: str = "") -> Case:
        """The request for ``body`` under ``r``."""
        transform = self._runner.model.transform
        assert isinstance(transform, ImageTransform)
        pixels = decode(body, transform, LIMIT, LIMIT)
        schedule = Schedule.parse(r)
        if embed:
            (features,) = self._runner.run([ImageInput(pixels, schedule, 0, "features")])
            known = tuple(np.frombuffer(features.features, "<f4").tolist())
            return Case(f"/embed?r={r}{more}", body, frozenset({200}), features=known)
        (classes,) = self._runner.run([ImageInput(pixels, schedule, 3)])
        scores = tuple(
            score for _, score in sorted(zip(classes.classes, classes.scores, strict=True))
        )
        return Case(f"/classify?r={r}&top_k=3{more}", body, frozenset({200}), scores=scores)

    def _good(self) -> list[Case]:
        """Every picture under every schedule, both ways; no two features alike, so that a swap
        cannot go unnoticed.
        """
        pairs = list(itertools.product(map(picture, range(PICTURES)), SCHEDULES))
        embeds = [self.case(body, r, embed=True) for body, r in pairs]
        known = np.array([case.features for case in embeds])
        apart = np.abs(known[:, None] - known[None]).max(-1) + 1e9 * np.eye(len(known))
        assert apart.min() > 5 * TOLERANCE, f"two answers differ by {apart.min():.2g} only"
        return embeds + [self.case(body, r, embed=False) for body, r in pairs]

    def draw(self, random: random.Random) -> Case:
        """Any good request."""
        return random.choice(self.good)
