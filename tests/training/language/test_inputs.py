"""What the network is trained on is what the server gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from server.audio.fbank import log_mel as served_log_mel
from server.catalog.entries import BUNDLED_SOUND, read_catalog
from server.media.transforms import AudioTransform
from tests.training.language.made_up import clip
from training.language.accuracy import windows_of
from training.language.augment import training_batch
from training.language.corpus import LABELS
from training.language.network import BAND, FRAMES, MEAN, STD, build
from training.language.spectrograms import MEL_BINS, log_mel
from training.language.tape import Tape

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from training.language.evaluate import TWIN, windows_as_served

CPU = torch.device("cpu")
TRANSFORM = AudioTransform(
    frames=FRAMES, mean=MEAN, std=STD, time_last=True, subtract_mean=False, mel_bins=MEL_BINS
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_spectrogram_is_the_server_s() -> None:
    samples = 0.1 * torch.randn(16_000, generator=generator())
    ours = log_mel(samples[None])[0]
    served = served_log_mel(samples.numpy(), MEL_BINS).T
    np.testing.assert_allclose(ours.numpy(), served, atol=1e-3)


def test_windows_are_the_server_s_below_the_end_of_the_band() -> None:
    clips = [clip(0, 0.4), clip(2, 2.9)]
    ours = windows_of(clips, CPU)
    served = windows_as_served(clips, TRANSFORM)
    assert torch.equal(ours.clips, served.clips)
    assert torch.equal(ours.labels, served.labels)
    # Two ways to resample differ near 4 kHz, and where there is next to nothing.
    differences = (ours.inputs - served.inputs)[:, :, : BAND - 6].abs()
    assert differences.median() < 1e-3
    assert differences.mean() < 0.02


@pytest.mark.parametrize("path", [BUNDLED_SOUND, TWIN])
def test_the_entry_says_what_the_network_was_trained_on(path: Path) -> None:
    (spec,) = read_catalog(path, ())
    assert spec.img_size == (MEL_BINS, FRAMES)
    assert (spec.mean, spec.std) == ((MEAN,), (STD,))
    assert spec.subtract_mean is False
    assert spec.labels is not None
    assert tuple(spec.labels.read_text().split()) == LABELS
    network = build()
    arguments = spec.model_args
    assert arguments["embed_dim"] == network.embed_dim
    assert arguments["depth"] == len(network.blocks)
    assert arguments["num_heads"] == network.blocks[0].attn.num_heads
    assert arguments["global_pool"] == network.global_pool


def test_excerpts_are_of_their_language_and_end_with_the_source() -> None:
    clips = [clip(0, 0.6, "a"), clip(0, 0.7, "a"), clip(1, 0.5, "b"), clip(1, 0.5, "c")]
    tape = Tape(clips, CPU)
    ends = tape.clip_ends.tolist()
    first, last, labels = tape.draw(500, generator())
    for start, end, label in zip(first.tolist(), last.tolist(), labels.tolist(), strict=True):
        assert label == int(start >= ends[1])
        assert start < end <= (ends[1] if label == 0 else ends[3])
    assert 0.4 < labels.float().mean() < 0.6


def test_an_excerpt_is_silent_after_its_end() -> None:
    tape = Tape([clip(0, 0.5)], CPU)
    samples = tape.read(torch.tensor([6000]), torch.tensor([8000]), torch.tensor([1.0]), 3000)
    torch.testing.assert_close(samples[0, :2000], tape.samples[6000:].float())
    assert not samples[0, 2000:].any()


def test_faster_excerpts_skip_samples() -> None:
    tape = Tape([clip(0, 0.5)], CPU)
    samples = tape.read(torch.tensor([0]), torch.tensor([8000]), torch.tensor([2.0]), 100)
    torch.testing.assert_close(samples[0], tape.samples[:200:2].float())


def test_augmented_batches_are_reproducible_and_padded_as_served() -> None:
    tape = Tape([clip(label, 0.5) for label in range(5)], CPU)
    log_mels, labels = training_batch(tape, 16, generator(3))
    assert log_mels.shape == (16, 1, MEL_BINS, FRAMES)
    assert log_mels.isfinite().all()
    assert set(labels.tolist()) <= set(range(5))
    # Half a second is at most 73 of the frames, as slow as they are played.
    assert not log_mels[..., 80:].any()
    again, _ = training_batch(tape, 16, generator(3))
    assert torch.equal(log_mels, again)
