"""Fills in what a row of a profile says of the closeness to r=0; see `ProfileRow`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from server.catalog.profiles import ProfileRow
from server.commands.agreement import agreement_interval, choose_margin
from server.commands.cosines import mean_cosine


def with_exact_agreement(row: ProfileRow) -> ProfileRow:
    """Return the row of r=0, of which there is nothing to estimate."""
    return replace(row, agreement=100.0, agreement_low=100.0, agreement_high=100.0)


def with_agreement(row: ProfileRow, agrees: npt.NDArray[np.bool_]) -> ProfileRow:
    """Return ``row`` with the agreement and its interval.

    Args:
        row: of a level.
        agrees: whether the class of each image is that of r=0, ``(N,)``, N at least 1.
    """
    low, high = agreement_interval(agrees)
    return replace(
        row,
        agreement=round(100 * float(agrees.mean()), 3),
        agreement_low=round(100 * low, 3),
        agreement_high=round(100 * high, 3),
    )


def with_margin(
    row: ProfileRow, margins: npt.NDArray[np.float64], agrees: npt.NDArray[np.bool_]
) -> ProfileRow:
    """Return ``row`` with the margin for second passes at r=0, and what it does.

    Args:
        row: of a level.
        margins: of each image between its two best probabilities, ``(N,)``.
        agrees: see `with_agreement`.
    """
    found = choose_margin(margins, agrees)
    return replace(
        row,
        margin=found.margin,
        margin_agreement=round(100 * found.shown, 3),
        second_passes=round(100 * found.second_passes, 2),
    )


def with_cosine(row: ProfileRow, values: npt.NDArray[np.float64]) -> ProfileRow:
    """Return ``row`` with the mean cosine of pooled features, its interval, and percentiles.

    Args:
        row: of a level.
        values: of each image, ``(N,)``, N at least 1.
    """
    found = mean_cosine(values)
    return replace(
        row,
        cosine=round(found.mean, 5),
        cosine_low=round(found.low, 5),
        cosine_high=round(found.high, 5),
        **_percentiles(values),
    )


def with_exact_cosine(row: ProfileRow) -> ProfileRow:
    """Return the row of r=0, of which there is nothing to estimate."""
    return replace(row, cosine=1.0, cosine_low=1.0, cosine_high=1.0, **_percentiles(np.ones(1)))


def _percentiles(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    first, fifth = np.percentile(values, [1, 5]).tolist()
    return {"cosine_p1": round(first, 5), "cosine_p5": round(fifth, 5)}


def with_recall(
    row: ProfileRow, alone: Mapping[int, float], mixed: Mapping[int, float]
) -> ProfileRow:
    """Return ``row`` with the recall of nearest neighbours, from 0 to 1 by how many these are.

    Args:
        row: of a level.
        alone: where all features are of that level.
        mixed: where half of them are of r=0.
    """
    return replace(
        row,
        recall_1=_percent(alone.get(1)),
        recall_10=_percent(alone.get(10)),
        mixed_recall_1=_percent(mixed.get(1)),
        mixed_recall_10=_percent(mixed.get(10)),
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def with_dense_cosine(row: ProfileRow, values: npt.NDArray[np.float64]) -> ProfileRow:
    """Return ``row`` with the mean cosine of the features of patches; see `with_cosine`."""
    found = mean_cosine(values)
    return replace(
        row,
        dense_cosine=round(found.mean, 5),
        dense_cosine_low=round(found.low, 5),
        dense_cosine_high=round(found.high, 5),
    )
