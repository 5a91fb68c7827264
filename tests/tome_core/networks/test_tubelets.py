"""Tubelets of a tall picture: PyTorch's convolution over time, loops, and sizes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tome_core.networks.tubelets import TubeletEmbed

# Frames, height and width, tubelet, patch; rows and columns of tubelets.
SHAPES: dict[str, tuple[int, tuple[int, int], int, int | tuple[int, int], tuple[int, int]]] = {
    "videomae": (16, (32, 48), 2, 16, (16, 3)),
    "one-tubelet": (4, (6, 6), 4, 6, (1, 1)),
    "frames-apart": (3, (8, 4), 1, 4, (6, 1)),
    "uneven": (6, (10, 21), 3, (5, 7), (4, 3)),
}


def make(shape: str, **options: Any) -> TubeletEmbed:
    frames, (height, width), tubelet, patch, _ = SHAPES[shape]
    torch.manual_seed(0)
    size = (frames * height, width)
    return TubeletEmbed(size, patch, 3, 5, frames=frames, tubelet=tubelet, **options).double()


def make_clips(embedding: TubeletEmbed) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, *embedding.img_size, generator=generator, dtype=torch.float64)


def as_frames(clips: Tensor, embedding: TubeletEmbed) -> Tensor:
    """``(B, C, T*H, W)`` -> ``(B, C, T, H, W)``."""
    return clips.view(*clips.shape[:2], embedding.frames, -1, clips.shape[3])


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_it_equals_a_convolution_over_time_height_and_width(shape: str) -> None:
    embedding = make(shape)
    clips = make_clips(embedding)
    proj = embedding.proj
    maps = F.conv3d(as_frames(clips, embedding), proj.weight, proj.bias, stride=proj.stride)
    expected = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(clips), expected, rtol=0, atol=1e-12)
    assert embedding.grid_size == SHAPES[shape][-1]
    assert embedding.num_patches == expected.shape[1]


@torch.no_grad()
def test_tokens_are_ordered_by_time_row_and_column() -> None:
    embedding = make("uneven")
    clips = make_clips(embedding)
    frames = as_frames(clips, embedding).numpy()[0]
    weight = embedding.proj.weight.numpy()
    assert embedding.proj.bias is not None
    expected = []
    for time in range(0, 6, 3):
        for top in range(0, 10, 5):
            for left in range(0, 21, 7):
                pixels = frames[:, time : time + 3, top : top + 5, left : left + 7]
                expected.append([float((kernel * pixels).sum()) for kernel in weight])
    numbers = np.array(expected) + embedding.proj.bias.numpy()
    np.testing.assert_allclose(embedding(clips)[0].numpy(), numbers, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_convolution() -> None:
    embedding = make("videomae")
    clips = make_clips(embedding).requires_grad_()
    embedding(clips).square().sum().backward()
    proj = copy.deepcopy(embedding.proj)
    proj.zero_grad()
    others = clips.detach().clone().requires_grad_()
    frames = as_frames(others, embedding)
    F.conv3d(frames, proj.weight, proj.bias, stride=proj.stride).square().sum().backward()
    torch.testing.assert_close(clips.grad, others.grad)
    torch.testing.assert_close(embedding.proj.weight.grad, proj.weight.grad)


def test_its_weights_have_the_names_and_shapes_of_a_convolution() -> None:
    embedding = make("videomae", norm_layer=nn.LayerNorm)
    shapes = {name: tuple(one.shape) for name, one in embedding.state_dict().items()}
    assert shapes == {
        "proj.weight": (5, 3, 2, 16, 16),
        "proj.bias": (5,),
        "norm.weight": (5,),
        "norm.bias": (5,),
    }
    copied = copy.deepcopy(embedding)
    clips = make_clips(embedding)
    assert torch.equal(copied(clips), embedding(clips))
    assert list(make("videomae", bias=False).state_dict()) == ["proj.weight"]


@pytest.mark.parametrize(
    ("size", "frames", "tubelet"),
    [
        ((5 * 16, 16), 5, 2),  # a frame too many
        ((4 * 16 + 1, 16), 4, 2),  # a line too many
        ((4 * 24, 16), 4, 2),  # frames of one patch and a half
        ((4 * 16, 24), 4, 2),
    ],
)
def test_a_remainder_is_refused(size: tuple[int, int], frames: int, tubelet: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames of .* no whole number of tubelets"):
        TubeletEmbed(size, 16, frames=frames, tubelet=tubelet)


@pytest.mark.parametrize(("frames", "tubelet"), [(0, 2), (-4, 2), (4, 0)])
def test_no_frames_are_refused(frames: int, tubelet: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames in tubelets of {tubelet} are no clip"):
        TubeletEmbed((frames * 16, 16), 16, frames=frames, tubelet=tubelet)


@pytest.mark.parametrize(
    "options",
    [
        {"dynamic_img_pad": True},
        {"strict_img_size": False},
        {"output_fmt": "NHWC"},
        {"flatten": False},
    ],
)
def test_options_that_need_images_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="clips of one size"):
        make("videomae", **options)


def test_clips_of_another_size() -> None:
    embedding = make("videomae")
    with pytest.raises(ValueError, match="got \\(512, 64\\)"):
        embedding(torch.zeros(1, 3, 512, 64, dtype=torch.float64))
    embedding.set_input_size((512, 64))
    assert embedding.grid_size == (16, 4)
    assert embedding(torch.zeros(1, 3, 512, 64, dtype=torch.float64)).shape == (1, 64, 5)
    with pytest.raises(ValueError, match="cannot be resized"):
        embedding.set_input_size(patch_size=8)
    with pytest.raises(ValueError, match="no whole number"):
        embedding.set_input_size((512, 40))
