"""Models of sound and video: which answer belongs to which request, computed here, window by
window, without a server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from server.catalog.entries import read_catalog
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import load_model
from server.media.transforms import Transform
from tests.chaos.oracle import TOLERANCE, Case
from tome_core.schedule import Schedule

Windows = Literal["first", "mean", "each"]
WINDOWS: tuple[Windows, ...] = get_args(Windows)


class MediaModel:
    """The model ``name`` of a models file, as the server runs it.

    Attributes:
        transform: from a body to its inputs.
    """

    def __init__(self, config: Path, name: str) -> None:
        (spec,) = (spec for spec in read_catalog(config, ()) if spec.name == name)
        device = torch.device("cpu")
        self._name = name
        self._runner = Runner(load_model(spec, device, torch.float32, levels=(0,)), device)
        self._classes = len(self._runner.model.labels)

    @property
    def transform(self) -> Transform:
        return self._runner.model.transform

    def classify(
        self, body: bytes, inputs: np.ndarray, r: str, windows: Windows = "mean", more: str = ""
    ) -> Case:
        """The request for the classes of ``body``, whose windows are ``inputs``.

        Args:
            more: further parameters, such as ``&clips=2``.
        """
        outputs = self._run(_first_or_all(inputs, windows), r, embed=False)
        rows = np.stack([self._scores(output) for output in outputs])
        path = f"/classify?{self._query(r, windows, more)}&top_k={self._classes}"
        each = tuple(map(tuple, rows.tolist())) if windows == "each" else ()
        scores = tuple(rows.mean(axis=0).tolist())
        return Case(path, body, frozenset({200}), scores=scores, windows=each)

    def embed(
        self, body: bytes, inputs: np.ndarray, r: str, windows: Windows = "mean", more: str = ""
    ) -> Case:
        """The request for the features of ``body``: one row, or one for each window."""
        outputs = self._run(_first_or_all(inputs, windows), r, embed=True)
        rows = np.stack([np.frombuffer(output.features, "<f4") for output in outputs])
        features = rows.ravel() if windows == "each" else rows.mean(axis=0)
        path = f"/embed?{self._query(r, windows, more)}"
        return Case(path, body, frozenset({200}), features=tuple(features.tolist()))

    def _query(self, r: str, windows: Windows, more: str) -> str:
        return f"model={self._name}&r={r}&windows={windows}{more}"

    def _run(self, inputs: np.ndarray, r: str, *, embed: bool) -> list[ImageOutput]:
        schedule = Schedule.parse(r)
        if embed:
            return self._runner.run([ImageInput(each, schedule, 0, "features") for each in inputs])
        return self._runner.run([ImageInput(each, schedule, self._classes) for each in inputs])

    def _scores(self, output: ImageOutput) -> npt.NDArray[np.float64]:
        """In order of the classes."""
        scores = np.zeros(self._classes)
        scores[list(output.classes)] = output.scores
        return scores


def _first_or_all(inputs: np.ndarray, windows: Windows) -> np.ndarray:
    return inputs[:1] if windows == "first" else inputs


def assert_apart(cases: Iterable[Case]) -> None:
    """Raise unless the answers for different bodies differ, so that a swap cannot go unnoticed."""
    groups = defaultdict(list)
    for case in cases:
        groups[case.route, len(case.values)].append(case)
    for (route, _), group in groups.items():
        known = np.array([case.values for case in group])
        bodies = np.array([hash(case.body) for case in group])
        apart = np.abs(known[:, None] - known[None]).max(-1)
        apart[bodies[:, None] == bodies[None]] = np.inf
        least = apart.min()
        assert least > 5 * TOLERANCE, f"two answers of {route} differ by {least:.2g} only"
