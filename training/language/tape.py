"""The training recordings on a device: one tape, from which batches of excerpts are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from training.language import clips as clips_module
from training.language.clips import Clip
from training.language.spectrograms import RATE

UPSAMPLING = RATE // clips_module.RATE
FILTER_REACH = 24  # samples of a clip on each side of the one that is interpolated
SHORTEST = 0.35  # seconds of an excerpt
SINGLE_SHARE = 0.5  # of the excerpts, which end with their clip


@cache
def interpolation_filters(device: torch.device) -> Tensor:
    """Return a filter ``(2 * FILTER_REACH, UPSAMPLING)`` for each place between two samples."""
    neighbours = torch.arange(1 - FILTER_REACH, FILTER_REACH + 1, dtype=torch.float64)
    places = torch.arange(UPSAMPLING, dtype=torch.float64) / UPSAMPLING
    offsets = neighbours[:, None] - places
    window = 0.5 + 0.5 * torch.cos(math.pi * offsets / (FILTER_REACH + 1))
    return (torch.sinc(offsets) * window).to(device, torch.float32)


def upsampled(samples: Tensor) -> Tensor:
    """Return ``samples (n,)``, at 8 kHz, at 16 kHz ``(2n,)``, with nothing above 4 kHz."""
    padded = F.pad(samples, (FILTER_REACH - 1, FILTER_REACH))
    neighbours = padded.unfold(0, 2 * FILTER_REACH, 1)  # (n, 2 * FILTER_REACH)
    return (neighbours @ interpolation_filters(samples.device)).flatten()


def waveform(clip: Clip, device: torch.device) -> Tensor:
    """Return the samples ``(n,)`` of ``clip`` at 16 kHz."""
    table = torch.from_numpy(clips_module.decode_table()).to(device)
    codes = torch.from_numpy(clip.codes).to(device).int()
    return upsampled(table[codes])


class Tape:
    """All clips, one after another, source by source.

    An excerpt is drawn by language first, then by source, then by time, so that neither a language
    nor a speaker counts for more because it has more recordings.
    """

    def __init__(self, clips: Sequence[Clip], device: torch.device) -> None:
        ordered = sorted(clips, key=lambda clip: clip.source)
        parts = [waveform(clip, device).half() for clip in ordered]
        self.samples = torch.cat(parts)
        lengths = torch.tensor([len(part) for part in parts], device=device)
        self.clip_ends = lengths.cumsum(0)
        self.labels = torch.tensor([clip.label for clip in ordered], device=device)
        # The clips of a source are those from one of these numbers to the next.
        firsts = [0]
        languages = []
        for index, clip in enumerate(ordered):
            is_last = index + 1 == len(ordered)
            if is_last or ordered[index + 1].source != clip.source:
                firsts.append(index + 1)
                languages.append(clip.label)
        self.clip_starts = self.clip_ends - lengths
        first_clips = torch.tensor(firsts[:-1], device=device)
        last_clips = torch.tensor(firsts[1:], device=device) - 1
        self.source_starts = self.clip_starts[first_clips]
        self.source_ends = self.clip_ends[last_clips]
        self.source_labels = torch.tensor(languages, device=device)
        # A source's share among those of its language, and the languages' shares, all equal.
        counts = torch.bincount(self.source_labels)[self.source_labels]
        self.weights = 1 / counts

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw excerpts.

        Returns:
            Where they start, where they end at the latest, and their labels, ``(batch,)`` each.
        """
        device = self.samples.device

        def uniform() -> Tensor:
            return torch.rand(batch, device=device, generator=generator)

        sources = torch.multinomial(self.weights, batch, replacement=True, generator=generator)
        starts = self.source_starts[sources]
        ends = self.source_ends[sources]
        positions = starts + (uniform() * (ends - starts)).long()
        clip = torch.searchsorted(self.clip_ends, positions, right=True)
        clip = clip.clamp(max=len(self.clip_ends) - 1)
        clip_starts = self.clip_starts[clip]
        clip_ends = self.clip_ends[clip]
        # Half of the excerpts of one clip begin where it begins, as a window of the server does.
        latest = (clip_ends - int(SHORTEST * RATE)).clamp(min=0)
        inner = torch.minimum(positions, torch.maximum(latest, clip_starts))
        inner = torch.where(uniform() < 0.5, clip_starts, inner)
        single = uniform() < SINGLE_SHARE
        positions = torch.where(single, inner, positions)
        ends = torch.where(single, clip_ends, ends)
        return positions, ends, self.source_labels[sources]

    def read(self, starts: Tensor, ends: Tensor, speeds: Tensor, length: int) -> Tensor:
        """Return ``(B, length)`` samples from ``starts``, played ``speeds`` times as fast.

        What is past ``ends`` is 0.
        """
        steps = torch.arange(length, device=self.samples.device)
        offsets = steps * speeds[:, None]  # (B, length)
        whole = offsets.long()
        part = offsets - whole
        index = starts[:, None] + whole
        last = len(self.samples) - 1
        left = self.samples[index.clamp(max=last)].float()
        right = self.samples[(index + 1).clamp(max=last)].float()
        samples = left + part * (right - left)
        return samples * (index < ends[:, None])
