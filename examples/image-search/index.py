"""An index of pictures: the file that `tome-serve embed --normalize -o` writes, in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open


@dataclass(frozen=True)
class Index:
    """Pictures and their vectors.

    Attributes:
        paths: of the pictures, one for each row of ``vectors``.
        vectors: float32 ``(n, D)``, of length 1.
        model, r: what embedded them.
    """

    paths: list[str]
    vectors: NDArray[np.float32]
    model: str
    r: str

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read the index at ``path``.

        Raises:
            ValueError: its vectors were not normalised.
        """
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = file.metadata()
            vectors = file.get_tensor("embeddings")
        if about["normalize"] != "true":
            raise ValueError(f"{path} needs vectors of length 1: tome-serve embed --normalize")
        return cls(json.loads(about["paths"]), vectors, about["model"], about["r"])

    def nearest(self, query: NDArray[np.float32], count: int) -> list[tuple[str, float]]:
        """Return the ``count`` pictures nearest to ``query (D,)`` and their cosines, best first."""
        cosines = self.vectors @ query  # (n,): scalar products of vectors of length 1
        best = np.argsort(-cosines)[:count]
        return [(self.paths[row], float(cosines[row])) for row in best]
