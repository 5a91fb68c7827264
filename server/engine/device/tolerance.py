"""How far two networks that compute the same may differ: by what rounding explains, and no more.

Matching is a discrete choice, and rounding alone can change it. A network in 16 bits therefore
sometimes differs a lot from the same network in float32. The tolerance allows for that: it grows
with the measured errors of the plain network in the same dtype.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from torch import Tensor

# The tolerance of an error is this multiple of the error that rounding causes in the plain network,
ROUNDING_FACTOR = 3.0
# plus a share of the logits: for the median image (to which the dtype's resolution is added),
MEDIAN_TOLERANCE = 1e-3
# and for the worst image, in which a merge may take another destination.
MAX_TOLERANCE = 0.05

# Avoids a division by zero for an image whose logits are all zero.
MIN_NORM = 1e-30


def judge(
    errors: Sequence[float],
    rounding_errors: Sequence[float],
    resolution: float,
) -> str:
    """Return which error exceeds its tolerance, or an empty string if none does.

    Args:
        errors: of the candidate, one for each image; see `relative_errors`.
        rounding_errors: of the plain network in the candidate's dtype.
        resolution: of the dtype, as a share of a value (``torch.finfo(dtype).eps``).
    """
    median_limit = ROUNDING_FACTOR * statistics.median(rounding_errors)
    median_limit += MEDIAN_TOLERANCE + resolution
    median_error = statistics.median(errors)
    if median_error > median_limit:
        return _describe_excess("median", median_error, median_limit)
    max_limit = ROUNDING_FACTOR * max(rounding_errors) + MAX_TOLERANCE
    max_error = max(errors)
    if max_error > max_limit:
        return _describe_excess("worst", max_error, max_limit)
    return ""


def _describe_excess(
    image: str,
    error: float,
    limit: float,
) -> str:
    return f"differs by {error:.2g} of the logits for the {image} image (tolerance: {limit:.2g})"


def relative_errors(logits: Sequence[Tensor], reference_logits: Sequence[Tensor]) -> list[float]:
    """Return each image's distance from its reference logits, divided by their Euclidean norm.

    The error of an image with NaN is infinity.

    Raises:
        ValueError: the shapes of a batch differ.
    """
    errors: list[float] = []
    for found, expected in zip(logits, reference_logits, strict=True):
        if found.shape != expected.shape:
            shapes = f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
            raise ValueError(f"logits of shape {shapes}")
        reference = expected.double().cpu()
        difference = found.double().cpu() - reference
        distance = difference.flatten(1).norm(dim=1)
        norm = reference.flatten(1).norm(dim=1)
        errors += (distance / norm.clamp_min(MIN_NORM)).tolist()
    return [math.inf if math.isnan(error) else error for error in errors]
