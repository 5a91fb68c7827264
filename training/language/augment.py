"""Augmentation: other voices, rooms and lines than those of the few speakers that are there.

Everything that tells speakers or studios apart and not languages is drawn at random: pitch, length
of the vocal tract, tempo, frequency response, noise and level. Spectrograms are ``(B, mel,
frames)``, before they are normalised.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.draws import Draw
from training.language.network import BAND, FRAMES, MEAN
from training.language.spectrograms import FLOOR, HOP, MEL_BINS, WINDOW, log_mel
from training.language.tape import Tape

SPEED = (0.82, 1.25)  # pitch, tract and tempo together, by resampling
TEMPO = (0.85, 1.2)
TRACT = (0.9, 1.12)  # scale of the mel axis
TRACT_SHIFT = 2.0  # filters
LEVEL = (-4.0, 3.0)  # of the log energy
NOISE = (-16.0, -7.5)  # log energy
PLAIN_SHARE = 0.2  # of the windows, with the line of the recording
RESPONSE_WAVES = 5  # cosines across the band that make a frequency response
LONGEST_SOURCE = math.ceil(FRAMES * TEMPO[1]) + 1  # frames that a window may need
FLOOR_LOG = math.log(FLOOR)


def training_batch(tape: Tape, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return augmented log-mel spectrograms ``(B, 1, mel, FRAMES)`` and labels ``(B,)``."""
    draw = Draw(batch, generator)
    starts, ends, labels = tape.draw(batch, generator)
    speeds = draw.ratio(SPEED)
    samples = tape.read(starts, ends, speeds, WINDOW + HOP * (LONGEST_SOURCE - 1))
    samples = reverberated(samples, draw)
    tempos = draw.ratio(TEMPO)
    log_mels = warped(log_mel(samples), tempos, draw)
    available = ((ends - starts) / speeds - WINDOW) / HOP / tempos + 1  # frames
    is_plain = draw.chance(PLAIN_SHARE)[:, None, None]
    log_mels = torch.where(is_plain, log_mels, add_line(log_mels, draw))
    log_mels = outside_band(log_mels, draw)
    log_mels = masked(log_mels, draw)
    frame = torch.arange(FRAMES, device=log_mels.device)
    is_padding = frame >= available.clamp(min=8)[:, None]
    log_mels = log_mels.masked_fill(is_padding[:, None, :], 0.0)
    return log_mels[:, None], labels


def reverberated(samples: Tensor, draw: Draw) -> Tensor:
    """Return ``samples (B, n)``, some of them in a room: convolved with decaying noise."""
    length = 3200
    times = torch.arange(length, device=samples.device) / length
    decay = draw.uniform(8.0, 40.0, 1)
    response = draw.normal(length) * torch.exp(-decay * times)
    response = response / response.norm(dim=1, keepdim=True)
    response = response * draw.uniform(0.1, 0.8, 1) * draw.chance(0.4)[:, None]
    response[:, 0] += 1
    size = samples.shape[1] + length
    spectrum = torch.fft.rfft(samples, n=size) * torch.fft.rfft(response, n=size)
    return torch.fft.irfft(spectrum, n=size)[:, : samples.shape[1]]


def warped(log_mels: Tensor, tempos: Tensor, draw: Draw) -> Tensor:
    """Return ``(B, mel, FRAMES)``: other tempo, and other length of the vocal tract."""
    frames = log_mels.shape[2]
    time = torch.arange(FRAMES, device=log_mels.device) * tempos[:, None]  # (B, FRAMES)
    bins = torch.arange(MEL_BINS, device=log_mels.device)
    tract = draw.ratio(TRACT)[:, None] * bins + draw.uniform(-TRACT_SHIFT, TRACT_SHIFT, 1)
    x = time * (2 / (frames - 1)) - 1
    y = tract * (2 / (MEL_BINS - 1)) - 1
    grid = torch.stack(
        [x[:, None, :].expand(-1, MEL_BINS, -1), y[:, :, None].expand(-1, -1, FRAMES)], dim=-1
    )
    result = F.grid_sample(log_mels[:, None], grid, padding_mode="border", align_corners=True)
    return result[:, 0]


def add_line(log_mels: Tensor, draw: Draw) -> Tensor:
    """Return ``log_mels`` as if through another microphone and line, with its noise."""
    waves = torch.arange(RESPONSE_WAVES, device=log_mels.device)
    bins = torch.arange(MEL_BINS, device=log_mels.device) / BAND
    basis = torch.cos(math.pi * (waves[:, None] + 1) * bins)  # (waves, mel)
    amplitudes = draw.normal(RESPONSE_WAVES) * (1.2 / (1 + waves) ** 0.5)
    response = amplitudes @ basis + draw.uniform(*LEVEL, 1)  # (B, mel)
    speech = log_mels + response[:, :, None]
    colour = (draw.normal(RESPONSE_WAVES) * (1.0 / (1 + waves))) @ basis
    level = draw.uniform(*NOISE, 1) - 20 * draw.chance(0.15)[:, None]
    noise = (level + colour)[:, :, None] + 0.6 * draw.normal(*log_mels.shape[1:])
    return torch.logaddexp(speech, noise).clamp(min=FLOOR_LOG)


def outside_band(log_mels: Tensor, draw: Draw) -> Tensor:
    """Return ``log_mels`` with what no telephone carries replaced: silence, or anything at all.

    A recording in full bandwidth has speech there, which the model must not need nor mind.
    """
    bins = torch.arange(MEL_BINS, device=log_mels.device)
    top = torch.where(draw.chance(0.5), draw.uniform(84, BAND), BAND)
    above = bins >= top[:, None]
    bottom = torch.where(draw.chance(0.3), draw.uniform(0, 14), 0)
    below = bins < bottom[:, None]
    # Loudness of the speech over time, as a recording in full bandwidth has it above, too.
    envelope = log_mels[:, 40:BAND].mean(dim=1, keepdim=True)  # (B, 1, frames)
    slope = draw.uniform(-0.1, 0.02, 1) * (bins - BAND)
    rich = envelope + slope[:, :, None] + draw.uniform(-3, 2, 1, 1)
    rich = rich + draw.normal(*log_mels.shape[1:])
    floor = torch.full_like(log_mels, FLOOR_LOG)
    is_rich = draw.chance(0.5)[:, None, None]
    filler = torch.where(is_rich, rich.clamp(min=FLOOR_LOG), floor)
    log_mels = torch.where(above[:, :, None], filler, log_mels)
    quiet = torch.maximum(log_mels - 6, floor)
    return torch.where(below[:, :, None], quiet, log_mels)


def masked(log_mels: Tensor, draw: Draw) -> Tensor:
    """Return ``log_mels`` with bands and times blanked (SpecAugment, arXiv 1904.08779)."""
    _, bins, frames = log_mels.shape
    for _ in range(2):
        band = _stripe(bins, 14, draw)[:, :, None]
        time = _stripe(frames, 24, draw)[:, None, :]
        log_mels = log_mels.masked_fill(band | time, MEAN)
    return log_mels


def _stripe(length: int, widest: int, draw: Draw) -> Tensor:
    """Return booleans ``(B, length)``, true in one stretch of at most ``widest``."""
    width = draw.uniform(0, widest, 1)
    start = draw.uniform(0, 1, 1) * (length - width)
    index = torch.arange(length, device=draw.generator.device)
    return (index >= start) & (index < start + width)
