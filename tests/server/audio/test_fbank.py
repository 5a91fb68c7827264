"""The log-mel spectrogram equals torchaudio's, and that is right where both differ from float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.audio.fbank import FLOOR, FRAME_SAMPLES, SAMPLE_RATE, count_frames, log_mel

torchaudio = pytest.importorskip("torchaudio")

MEL_BINS = 128
EMPTY_BIN = 3  # of 128: no frequency of the FFT lies in it


def kaldi(samples: np.ndarray) -> np.ndarray:
    """What torchaudio says, in the dtype of ``samples``."""
    spectrogram = torchaudio.compliance.kaldi.fbank(
        torch.from_numpy(samples)[None],
        htk_compat=True,
        sample_frequency=SAMPLE_RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=MEL_BINS,
        dither=0.0,
        frame_shift=10,
    )
    return spectrogram.numpy()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(FRAME_SAMPLES, 6000),
    volume=st.sampled_from([1e-4, 1e-2, 0.1, 1.0]),
    offset=st.sampled_from([0.0, 0.3]),
)
def test_noise_equals_torchaudio(seed: int, length: int, volume: float, offset: float) -> None:
    noise = np.random.default_rng(seed).standard_normal(length)
    samples = (volume * noise + offset).astype(np.float32)
    ours = log_mel(samples, MEL_BINS)
    np.testing.assert_allclose(ours, kaldi(samples), atol=1e-3, rtol=0)
    np.testing.assert_allclose(ours, kaldi(samples.astype(np.float64)), atol=2e-4, rtol=0)


@pytest.mark.parametrize("hertz", [50, 440, 1000, 3999, 7900])
def test_pure_tones(hertz: int) -> None:
    """Far from the tone there is only rounding, which is torchaudio's own."""
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    samples = (0.5 * np.sin(2 * np.pi * hertz * seconds)).astype(np.float32)
    ours = log_mel(samples, MEL_BINS)
    np.testing.assert_allclose(ours, kaldi(samples), atol=2e-2, rtol=0)
    np.testing.assert_allclose(ours, kaldi(samples.astype(np.float64)), atol=1e-3, rtol=0)


def test_a_tone_is_in_the_bin_of_its_frequency() -> None:
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    loudest = [
        int(log_mel(np.sin(2 * np.pi * hertz * seconds).astype(np.float32), MEL_BINS)[0].argmax())
        for hertz in (100, 400, 1000, 4000, 7000)
    ]
    assert loudest == sorted(set(loudest))


def test_silence_is_the_floor() -> None:
    silence = log_mel(np.zeros(SAMPLE_RATE, np.float32), MEL_BINS)
    assert np.unique(silence) == np.float32(FLOOR)


def test_a_bin_without_any_frequency_is_the_floor_in_every_sound() -> None:
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    spectrogram = log_mel(noise, MEL_BINS)
    assert (spectrogram[:, EMPTY_BIN] == np.float32(FLOOR)).all()
    assert (np.delete(spectrogram, EMPTY_BIN, axis=1) > FLOOR).all()


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16_000, 98)],
)
def test_frames_are_whole(samples: int, frames: int) -> None:
    assert count_frames(samples) == frames
    assert log_mel(np.ones(samples, np.float32), MEL_BINS).shape == (frames, MEL_BINS)
