"""How training starts: with easy clips, and with filters that respond to motion."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.draws import Draw
from training.motion.clips import clips
from training.motion.detectors import DIRECTIONS, PERIODS, SPEEDS, motion_detectors
from training.motion.motions import NAMES
from training.motion.network import FRAMES, PATCH, SIZE, TUBELET, build
from training.motion.poses import SIZES, resting

GARMENT = torch.ones(1, 28, 28)


def draw(difficulty: float, count: int = 500) -> Draw:
    return Draw(count, torch.Generator().manual_seed(0), difficulty)


def test_the_easiest_clips_begin_upright_in_the_middle() -> None:
    poses = resting(draw(0.0))
    assert (poses.x == SIZE / 2).all()
    assert (poses.y == SIZE / 2).all()
    assert (poses.angle == 0).all()
    torch.testing.assert_close(poses.size, poses.size[:1].expand_as(poses.size))


def test_the_easiest_clips_have_two_colours_without_noise() -> None:
    labels = torch.tensor([NAMES.index("right"), NAMES.index("zoom-in")])
    made = clips(GARMENT, labels, torch.Generator().manual_seed(0), difficulty=0.0)
    frames = made.pixels.unflatten(2, (FRAMES, SIZE))  # (B, 3, T, H, W)
    corners = frames[:, :, 0, :8, :8].flatten(2)
    middles = frames[:, :, 0, 28:36, 28:36].flatten(2)
    for flat in (corners, middles):
        spread = flat.amax(dim=-1).int() - flat.amin(dim=-1).int()
        assert spread.max() <= 1
    assert (corners[..., 0].int() - middles[..., 0].int()).abs().min() > 5


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_poses_spread_with_the_difficulty_to_those_of_all_other_clips(share: float) -> None:
    part = resting(draw(share))
    whole = resting(Draw(500, torch.Generator().manual_seed(0)))
    middle = math.sqrt(SIZES[0] * SIZES[1])
    torch.testing.assert_close(part.x - SIZE / 2, share * (whole.x - SIZE / 2))
    torch.testing.assert_close(part.angle, share * whole.angle)
    torch.testing.assert_close((part.size / middle).log(), share * (whole.size / middle).log())


def drifting(direction: int, speed: float, period: float) -> Tensor:
    """Return gratings ``(16, TUBELET, PATCH, PATCH)`` of all phases that move in a direction."""
    angle = 2 * math.pi * direction / DIRECTIONS
    place = torch.arange(PATCH, dtype=torch.float32)
    along = place * math.cos(angle) - place[:, None] * math.sin(angle)
    time = torch.arange(TUBELET)[:, None, None]
    phases = 2 * math.pi * torch.arange(16)[:, None, None, None] / 16
    return torch.cos(2 * math.pi / period * (along - speed * time) + phases)


@pytest.mark.parametrize("direction", range(DIRECTIONS))
def test_a_moving_wave_excites_the_detectors_of_its_direction_most(direction: int) -> None:
    detectors = motion_detectors(TUBELET, PATCH)
    detectors = detectors.unflatten(0, (DIRECTIONS, len(SPEEDS), len(PERIODS), 2))
    for speed_number, speed in enumerate(SPEEDS):
        for period_number, period in enumerate(PERIODS):
            waves = drifting(direction, speed, period)
            pairs = detectors[:, speed_number, period_number]
            energy = torch.einsum("dptyx,wtyx->dpw", pairs, waves).square().sum(dim=1).mean(dim=1)
            assert energy.argmax() == direction
            assert energy[direction] > energy[(direction + DIRECTIONS // 2) % DIRECTIONS]


def test_detectors_have_norm_one_and_no_mean() -> None:
    detectors = motion_detectors(TUBELET, PATCH)
    assert detectors.shape == (64, TUBELET, PATCH, PATCH)
    torch.testing.assert_close(detectors.flatten(1).norm(dim=1), torch.ones(64))
    assert detectors.mean(dim=(2, 3)).abs().max() < 1e-6


def test_the_network_starts_with_detectors_of_grey() -> None:
    filters = build().patch_embed.proj.weight.detach()
    detectors = motion_detectors(TUBELET, PATCH)
    torch.testing.assert_close(filters[:64].sum(dim=1), detectors)
