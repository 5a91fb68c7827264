"""The forward pass without graphs; `test_cuda_graphs.py` has those."""

import numpy as np
import pytest
import torch
from torch import Tensor

from server.engine.device.forward import FloatImages, Forward
from server.engine.loading.model_loader import LoadedModel
from tests.server.engine.device.fake_graphs import CPU, IMAGE_SHAPE, random_pixels
from tome_core.schedule import Schedule

SCHEDULES = [
    Schedule.constant(0),
    Schedule.constant(4),
    Schedule.constant(8),
]


def normalise(pixels: np.ndarray) -> np.ndarray:
    """Normalise with the mean and the standard deviation of the tiny model."""
    images = (pixels / 255 - 0.5) / 0.25
    return images.astype(np.float32)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def forward(tiny: LoadedModel) -> Forward:
    return Forward(tiny.network, tiny.mean, tiny.std, CPU)


def test_pixels_are_normalised(
    forward: Forward,
    tiny: LoadedModel,
) -> None:
    pixels = random_pixels(3)
    images = torch.from_numpy(normalise(pixels))
    with torch.inference_mode():
        expected = tiny.network(images, r=SCHEDULES)
    logits = forward(pixels, SCHEDULES).logits
    assert_close(logits, expected)


def test_floats_replace_their_rows(forward: Forward) -> None:
    pixels = random_pixels(3)
    expected = forward(pixels, SCHEDULES)
    rows = [0, 2]
    float_images = FloatImages(rows, normalise(pixels[rows]))
    pixels[rows] = 255
    logits = forward(pixels, SCHEDULES, float_images=float_images).logits
    assert_close(logits, expected.logits)


def test_the_readout_has_the_best_classes(forward: Forward) -> None:
    readout = forward.run(random_pixels(3), SCHEDULES, top=2)
    logits = readout.outputs.logits
    scores = logits.softmax(dim=-1)
    best_scores, best_classes = scores.topk(2, dim=-1)
    assert_close(readout.best[:, :2], best_scores)
    assert torch.equal(readout.best[:, 2:4], best_classes.float())
    assert readout.best[:, 4].all()


def test_source_maps_are_optional(forward: Forward) -> None:
    pixels = random_pixels(3)
    assert forward(pixels, SCHEDULES).source is None
    source = forward(pixels, SCHEDULES, source=True).source
    assert source is not None
    assert source.shape == (3, 17)


def test_the_buffer_for_the_next_batch_has_its_shape(forward: Forward) -> None:
    buffer = forward.pixel_buffer((5, *IMAGE_SHAPE))
    assert buffer.shape == (5, *IMAGE_SHAPE)
    assert buffer.dtype == np.uint8


def test_nothing_is_recorded_at_first(forward: Forward) -> None:
    assert forward.recorded == (frozenset(), (), False)
