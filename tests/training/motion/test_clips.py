"""What a clip shows, and that no single frame of it tells the class."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.draws import Draw
from training.motion.clips import clips, held_out, training_batch
from training.motion.motions import MOTIONS, NAMES
from training.motion.network import FRAMES, SIZE
from training.motion.poses import GROWTH, LOG_SIZES, SIZES, TRAVEL, TURN, Poses, moving
from training.motion.recording import BLOCK, compressed, cosine_transform
from training.motion.scenes import layer

CLASSES = torch.arange(len(MOTIONS))


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Ten made-up garments: a bright bar on a dim square, which shows how it is turned."""
    garments = torch.zeros(10, 28, 28)
    garments[:, 4:24, 4:24] = 0.4
    for number, garment in enumerate(garments):
        garment[6 : 10 + number, 6:22] = 1.0
    return garments


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poses_of(name: str, count: int = 200) -> Poses:
    labels = torch.full((count,), NAMES.index(name))
    return moving(labels, Draw(count, generator()))


def on_circle(distances: Tensor, length: float) -> Tensor:
    """Return distances on a circle, from -length/2 to length/2."""
    return (distances + length / 2) % length - length / 2


def test_clips_of_one_seed_have_the_same_first_frame_whatever_their_class(
    pictures: Tensor,
) -> None:
    classes = torch.arange(len(MOTIONS)).repeat_interleave(2).view(-1, 2)
    same = [clips(pictures, labels, generator(3)).pixels for labels in classes]
    frames = torch.stack(same).unflatten(3, (FRAMES, SIZE))  # (class, B, 3, T, H, W)
    assert torch.equal(frames[:, :, :, 0], frames[:1, :, :, 0].expand(len(MOTIONS), -1, -1, -1, -1))
    last = frames[:, 0, :, -1].flatten(1).float()
    different = torch.pdist(last) > 0
    assert different.all()


@pytest.mark.parametrize("frame", [0, 7, 15])
def test_a_pose_has_the_same_distribution_in_every_frame_of_every_class(frame: int) -> None:
    count = 4000
    for name in NAMES:
        poses = poses_of(name, count)
        circles = {
            "x": poses.x / SIZE,
            "y": poses.y / SIZE,
            "angle": poses.angle / (2 * math.pi) % 1,
            "size": (poses.size / SIZES[0]).log() / LOG_SIZES,
        }
        for coordinate, places in circles.items():
            # The largest distance to the uniform distribution (Kolmogorov-Smirnov); its quantile.
            place = places[:, frame].sort().values
            uniform = (torch.arange(count) + 0.5) / count
            assert (place - uniform).abs().max() < 1.95 / math.sqrt(count), (name, coordinate)


def test_what_is_drawn_does_not_depend_on_the_class() -> None:
    left = poses_of("left")
    right = poses_of("right")
    there_and_back = on_circle(left.x[:, -1] - left.x[:, 0] + right.x[:, -1] - right.x[:, 0], SIZE)
    assert there_and_back.abs().max() < 1e-3
    assert torch.equal(left.y, right.y)


@pytest.mark.parametrize("name", NAMES[:8])
def test_a_translation_goes_in_its_direction_alone(name: str) -> None:
    poses = poses_of(name)
    right = on_circle(poses.x.diff(dim=1), SIZE).sum(dim=1)
    down = on_circle(poses.y.diff(dim=1), SIZE).sum(dim=1)
    horizontal = ("right" in name) - ("left" in name)
    vertical = ("down" in name) - ("up" in name)
    travel = torch.hypot(right, down)
    norm = math.hypot(horizontal, vertical)
    torch.testing.assert_close(right, travel * horizontal / norm, atol=1e-3, rtol=0)
    torch.testing.assert_close(down, travel * vertical / norm, atol=1e-3, rtol=0)
    assert TRAVEL[0] - 1e-3 <= travel.min() <= travel.max() <= TRAVEL[1] + 1e-3
    assert (poses.angle == poses.angle[:, :1]).all()
    torch.testing.assert_close(poses.size, poses.size[:, :1].expand_as(poses.size))


@pytest.mark.parametrize(("name", "sign"), [("zoom-in", 1), ("zoom-out", -1)])
def test_a_zoom_changes_the_size_alone(name: str, sign: int) -> None:
    poses = poses_of(name)
    steps = on_circle(poses.size.log().diff(dim=1), LOG_SIZES)
    growth = sign * steps.sum(dim=1)
    assert GROWTH[0] - 1e-3 <= growth.min() <= growth.max() <= GROWTH[1] + 1e-3
    assert (poses.x == poses.x[:, :1]).all()
    assert (poses.angle == poses.angle[:, :1]).all()


def test_clockwise_is_clockwise_on_the_screen() -> None:
    garment = torch.zeros(1, 28, 28)
    garment[:, 2:8, 12:16] = 1  # a mark at 12 o'clock
    quarter = torch.tensor([[0.0, math.pi / 2]])
    middle = torch.full((1, 2), SIZE / 2)
    alpha = layer(garment, Poses(middle, middle, quarter, torch.full((1, 2), 40.0))).alpha[0, 0]
    centre = torch.arange(SIZE) + 0.5 - SIZE / 2
    at_12, at_3 = alpha
    assert (at_12.sum(dim=0) * centre).sum().abs() < 1
    assert (at_12.sum(dim=1) * centre).sum() < -100
    assert (at_3.sum(dim=0) * centre).sum() > 100
    assert (at_3.sum(dim=1) * centre).sum().abs() < 1
    turns = poses_of("rotate-clockwise").angle
    assert ((turns[:, -1] - turns[:, 0]) >= TURN[0] - 1e-3).all()


def test_a_garment_that_leaves_on_one_side_comes_back_on_the_other() -> None:
    garment = torch.ones(1, 28, 28)
    corner = torch.zeros(1, 1)
    still = torch.zeros(1, 1)
    alpha = layer(garment, Poses(corner, corner, still, torch.full((1, 1), 20.0))).alpha[0, 0, 0]
    assert alpha.sum() == pytest.approx(400, rel=0.05)
    for top in (alpha[:12], alpha[-12:]):
        for quarter in (top[:, :12], top[:, -12:]):
            assert quarter.sum() == pytest.approx(100, rel=0.05)


def test_the_same_seed_makes_the_same_clips(pictures: Tensor) -> None:
    first = training_batch(pictures, 3, generator(1))
    again = training_batch(pictures, 3, generator(1))
    other = training_batch(pictures, 3, generator(2))
    assert first.pixels.dtype == torch.uint8
    assert first.pixels.shape == (3, 3, FRAMES * SIZE, SIZE)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.pixels, other.pixels)


def test_held_out_clips_are_of_all_classes_in_turn(pictures: Tensor) -> None:
    portions = list(held_out(pictures, 15))
    labels = torch.cat([portion.labels for portion in portions])
    assert labels.tolist() == [*range(12), 0, 1, 2]
    assert sum(len(portion.pixels) for portion in portions) == 15


def test_the_cosine_transform_is_orthonormal() -> None:
    cosines = cosine_transform(torch.device("cpu"))
    torch.testing.assert_close(cosines @ cosines.T, torch.eye(BLOCK), atol=1e-6, rtol=0)
    # Of scipy.fft.dct([1, 2, ..., 8], norm="ortho").
    expected = [12.7279, -6.4423, 0.0, -0.6735, 0.0, -0.2009, 0.0, -0.0507]
    torch.testing.assert_close(
        cosines @ torch.arange(1.0, 9.0), torch.tensor(expected), atol=1e-4, rtol=0
    )


def test_compression_keeps_grey_pictures_but_for_what_it_rounds() -> None:
    grey = torch.rand(2, 1, 16, 24, generator=generator()).expand(-1, 3, -1, -1)
    same = compressed(grey, torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(same, grey, atol=1e-3, rtol=0)
    errors = (compressed(grey, torch.tensor([0.05, 0.4])) - grey).abs().mean(dim=(1, 2, 3))
    assert 0 < errors[0] < errors[1] < 0.1
