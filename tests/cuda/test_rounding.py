"""In each dtype that serves, the optimised network is as exact as the plain one in that dtype."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

import tome_core
from server.engine.device import self_check, tolerance
from server.engine.device.tolerance import relative_errors
from tests.cuda.networks import (
    LEVELS,
    MIXED,
    POSITIONS,
    SMALL,
    SOUND,
    VIDEO,
    image_shape,
    images,
    network,
)

pytestmark = pytest.mark.cuda

BFLOAT16 = torch.bfloat16
FLOAT16 = torch.float16
FLOAT32 = torch.float32
DTYPES = [BFLOAT16, FLOAT16, FLOAT32]
# Batches of other images: the tolerance applies to the median and to the worst of all images.
ROUNDS = 2
# One image in so many may merge another way, where two tokens are nearly alike. That happens to the
# tokens of small networks with random weights. A mistake would affect all images.
IMAGES_PER_OUTLIER = 25


def in_dtypes(
    names: list[str],
    in_all_dtypes: tuple[str, ...] = ("class-token",),
) -> list[tuple[str, torch.dtype]]:
    """Return each network with the dtypes to test it in.

    Only some run in all dtypes, since compiling the kernels takes long. The others run in bfloat16,
    which usually serves.
    """
    cases = []
    for name in names:
        dtypes = DTYPES if name in in_all_dtypes else [BFLOAT16]
        cases += [(name, dtype) for dtype in dtypes]
    return cases


def judge(
    errors: list[float],
    rounding_errors: list[float],
    dtype: torch.dtype,
) -> str:
    """Return the verdict of the self check, without the outliers of a correct network."""
    outliers = max(1, len(errors) // IMAGES_PER_OUTLIER)
    without_outliers = sorted(errors)[:-outliers]
    return tolerance.judge(without_outliers, rounding_errors, torch.finfo(dtype).eps)


def inputs() -> Iterator[tuple[int, Any]]:
    """Yield a seed for the images, and r."""
    for seed in range(ROUNDS):
        for r in (*LEVELS, list(MIXED)):
            yield seed, r


def all_logits(
    model: tome_core.MergedViT,
    name: str,
    device: torch.device,
) -> list[torch.Tensor]:
    """Return the logits of all `inputs`."""
    logits = []
    with torch.inference_mode():
        for seed, r in inputs():
            batch = images(name, len(MIXED), seed).to(device)
            logits.append(model(batch, r=r))
    return logits


@cache
def reference_logits(
    name: str,
    device: torch.device,
) -> list[torch.Tensor]:
    """Return the logits of all `inputs` by the plain network in float64."""
    return all_logits(network(name, device), name, device)


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_dtypes([*SMALL, *POSITIONS, *SOUND, *VIDEO, "vit-s"], ("class-token", "rotary", "relative")),
    ids=str,
)
def test_errors_are_those_of_the_dtype(
    name: str,
    dtype: torch.dtype,
    gpu: torch.device,
) -> None:
    plain = network(name, gpu, dtype)
    fast = tome_core.optimize(network(name, gpu, FLOAT32), dtype)
    reference = reference_logits(name, gpu)
    rounding_errors = relative_errors(all_logits(plain, name, gpu), reference)
    errors = relative_errors(all_logits(fast, name, gpu), reference)
    assert judge(errors, rounding_errors, dtype) == ""


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_dtypes(["class-token", "like-dinov2", "rotary", "relative", "vit-s"]),
    ids=str,
)
def test_the_self_check_accepts_the_kernels(
    name: str,
    dtype: torch.dtype,
    gpu: torch.device,
) -> None:
    plain = network(name, gpu, FLOAT32)
    checked = self_check.accelerate(plain, dtype, image_shape(name), LEVELS, name)
    assert checked.acceleration == "kernels"


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_dtypes(["class-token", "registers", "rotary", "vit-s"]),
    ids=str,
)
def test_an_image_alone_has_the_logits_that_it_has_in_a_mixed_batch(
    name: str,
    dtype: torch.dtype,
    gpu: torch.device,
) -> None:
    """The tolerance is the self check's, from the errors of the plain network in that dtype."""
    exact = network(name, gpu)
    plain = network(name, gpu, dtype)
    fast = tome_core.optimize(network(name, gpu, FLOAT32), dtype)
    errors: list[float] = []
    rounding_errors: list[float] = []
    r = list(MIXED)
    for seed in range(ROUNDS):
        batch = images(name, len(MIXED), seed).to(gpu)
        with torch.inference_mode():
            each_alone = [fast(batch[i : i + 1], r=MIXED[i]) for i in range(len(MIXED))]
            alone = torch.cat(each_alone)
            together = fast(batch, r=r)
            errors += relative_errors([together], [alone])
            rounded = plain(batch, r=r)
            rounding_errors += relative_errors([rounded], [exact(batch, r=r)])
    assert judge(errors, rounding_errors, dtype) == ""
