"""What a model accepts as images: normalised floats, or raw pixels with their normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tome_core.models import make_images, make_vit
from tome_core import Pixels, patch


def test_an_empty_batch_and_integer_images_are_refused() -> None:
    model = patch(make_vit())
    with pytest.raises(ValueError, match="empty"):
        model(make_images(0), r=[])
    with pytest.raises(TypeError, match="uint8"):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r=2)


def make_pixels(batch: int) -> Pixels:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (batch, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Pixels(values, torch.tensor([0.01, 0.02, 0.03]), torch.tensor([-1.0, -2.0, -3.0]))


@pytest.mark.parametrize("r", [0, 3, [0, 3, 3]])
@torch.no_grad()
def test_pixels_are_normalised_first(r: Any) -> None:
    model = patch(make_vit(dtype=torch.float32))
    pixels = make_pixels(3)
    mean = pixels.shift / -pixels.scale
    std = 1 / pixels.scale
    images = (pixels.values - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(pixels.normalised(), images)
    images = pixels.normalised()
    outputs = model.outputs(pixels, r=r, source=True)
    expected = model.outputs(images, r=r, source=True)
    for actual, reference in zip(vars(outputs).values(), vars(expected).values(), strict=True):
        assert torch.equal(actual, reference)
    assert torch.equal(model(pixels, r=r), model(images, r=r))
    assert torch.equal(model.embed(pixels, r=r), model.embed(images, r=r))
    assert torch.equal(model.trace(pixels, r=r).logits, model.trace(images, r=r).logits)
    assert torch.equal(model.intermediates(pixels, r=r)[0], model.intermediates(images, r=r)[0])
    assert (len(pixels), pixels.shape, len(pixels[1:])) == (3, (3, 3, 16, 16), 2)
    assert model.input_tokens(pixels) == model.input_tokens(images) == 17
    assert model.patch_grid(pixels) == (4, 4)


def test_pixels_of_a_wrong_dtype_shape_or_device_are_refused() -> None:
    values = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    channels = torch.zeros(3)
    for arguments in (
        (values.float(), channels, channels),
        (values, channels.double(), channels),
        (values, channels, channels.half()),
    ):
        with pytest.raises(TypeError, match="must be uint8"):
            Pixels(*arguments)
    for arguments in (
        (values[0], channels, channels),
        (values, channels[:1], channels),
        (values, channels, channels[None]),
    ):
        with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
            Pixels(*arguments)
    with pytest.raises(ValueError, match="one device"):
        Pixels(values, channels, channels.to("meta"))
    with pytest.raises(ValueError, match="empty"):
        patch(make_vit())(make_pixels(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images_dtype", [torch.float64, torch.float32, torch.float16])
def test_images_are_cast_to_the_model(dtype: torch.dtype, images_dtype: torch.dtype) -> None:
    model = patch(make_vit(dtype=dtype))
    images = make_images(2, dtype=images_dtype)
    for r in (0, 3, [0, 3]):
        trace = model.trace(images, r=r)
        accumulated = torch.float64 if dtype == torch.float64 else torch.float32
        assert (
            trace.logits.dtype == trace.tokens[0].dtype == model.embed(images, r=r).dtype == dtype
        )
        assert trace.sizes[0].dtype == trace.sizes[1].dtype == accumulated
        assert torch.equal(trace.logits, model(images.to(dtype), r=r))
