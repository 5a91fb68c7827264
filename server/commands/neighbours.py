"""How many of the nearest neighbours among images stay the same when their features change.

Pure arithmetic over features. Near is what has a large cosine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Of how many nearest neighbours a share is given.
COUNTS = (1, 10)
# Of more images these many, at equal distances, look for their neighbours, among all.
MOST_QUERIES = 2000

_QUERIES_TOGETHER = 256  # whose cosines with all images are in memory at a time
_ROUNDING = 1e-6  # of a cosine in float32: copies of an image are equally near


class NeighbourRecall:
    """The nearest neighbours of images at r=0, with which those by other features are compared.

    An image is no neighbour of itself. A neighbour counts as found if it is as near at r=0 as the
    one that it may have replaced, so that it does not matter which of several copies is found.

    Args:
        exact: the features at r=0, ``(N, D)``.
    """

    def __init__(self, exact: npt.NDArray[np.floating]) -> None:
        self._exact = _unit(exact)
        images = len(exact)
        # Where all others are neighbours, none can be missed.
        self._counts = [count for count in COUNTS if count + 2 <= images]
        queries = min(images, MOST_QUERIES)
        self._queries = np.arange(queries) * images // max(queries, 1)
        self._is_exact = np.random.default_rng(0).permutation(images) < images // 2
        self._least: npt.NDArray[np.float32] | None = None
        if self._counts:
            self._least = self._exact_cosines(self._nearest(self._exact))

    def of(self, features: npt.NDArray[np.floating]) -> dict[int, float]:
        """Return the share of the nearest neighbours that ``features`` find, from 0 to 1.

        Args:
            features: of the same images, ``(N, D)``.

        Returns:
            The mean over the images, by the number of neighbours: a key of `COUNTS`. Numbers for
            which there are too few images are missing.
        """
        return self._shares(_unit(features))

    def of_mixture(self, features: npt.NDArray[np.floating]) -> dict[int, float]:
        """Return the same where a random half of the images has its features of r=0 instead."""
        return self._shares(np.where(self._is_exact[:, None], self._exact, _unit(features)))

    def _shares(self, vectors: npt.NDArray[np.float32]) -> dict[int, float]:
        if self._least is None:
            return {}
        found = self._exact_cosines(self._nearest(vectors))
        return {
            count: float((found[:, :count] >= self._least[:, count - 1 : count] - _ROUNDING).mean())
            for count in self._counts
        }

    def _nearest(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return the indices of the nearest neighbours of each query, the nearest first."""
        most = max(self._counts)
        found = []
        for start in range(0, len(self._queries), _QUERIES_TOGETHER):
            queries = self._queries[start : start + _QUERIES_TOGETHER]
            distances = -(vectors[queries] @ vectors.T)
            distances[np.arange(len(queries)), queries] = np.inf
            nearest = np.argpartition(distances, most - 1, axis=1)[:, :most]
            order = np.argsort(np.take_along_axis(distances, nearest, axis=1), axis=1)
            found.append(np.take_along_axis(nearest, order, axis=1))
        return np.concatenate(found)

    def _exact_cosines(self, neighbours: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the cosines at r=0 of each query with its ``neighbours``, of the same shape."""
        cosines = [
            self._exact[row] @ self._exact[query]
            for query, row in zip(self._queries, neighbours, strict=True)
        ]
        return np.stack(cosines)


def _unit(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return the vectors with length 1; those without a direction stay zero."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    unit: npt.NDArray[np.float32] = (features / np.where(lengths > 0, lengths, 1)).astype(
        np.float32
    )
    return unit
