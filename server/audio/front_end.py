"""From an encoded sound to a model's inputs: decode, cut into windows, log-mel, normalise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from server.audio.decode import decode
from server.audio.fbank import FRAME_SAMPLES, SAMPLE_RATE, log_mel
from server.audio.windows import cut
from server.media.decoded import Decoded, Window
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform


def prepare(body: bytes, transform: AudioTransform, limits: AudioLimits) -> Decoded:
    """Return the model's inputs for the encoded sound ``body``, one for each window.

    Raises:
        BadMedia: the sound is empty, corrupt or truncated, or has samples that are no numbers.
        UnsupportedFormat: it is in none of `server.audio.formats.FORMATS`.
        TooLarge: it exceeds a limit.
    """
    sound = decode(body, SAMPLE_RATE, limits)
    spans = cut(len(sound.samples), transform.frames, limits.max_windows)
    inputs = np.empty((len(spans), *transform.size), np.float32)
    for model_input, span in zip(inputs, spans, strict=True):
        model_input[:] = window_input(sound.samples[span], transform)
    windows = tuple(_locate(span, sound.media.seconds) for span in spans)
    return Decoded(inputs, windows, sound.media)


def window_input(
    samples: npt.NDArray[np.float32],
    transform: AudioTransform,
) -> npt.NDArray[np.float32]:
    """Return the input ``(C, H, W)``, normalised, for the samples ``(S,)`` of one window.

    They are at 16 kHz. Fewer samples than a window has are padded as in training: with zeros in the
    log-mel spectrogram. Fewer than one frame has are padded with silence first.
    """
    if len(samples) < FRAME_SAMPLES:
        samples = np.pad(samples, (0, FRAME_SAMPLES - len(samples)))
    if transform.subtract_mean:
        samples = samples - samples.mean()
    spectrogram = np.zeros((transform.frames, transform.mel_bins), np.float32)
    rows = log_mel(samples, transform.mel_bins)[: transform.frames]
    spectrogram[: len(rows)] = rows
    normalised = (spectrogram - np.float32(transform.mean)) / np.float32(2 * transform.std)
    if transform.time_last:
        normalised = normalised.T
    return normalised.reshape(transform.size)


def _locate(span: slice, seconds: float) -> Window:
    """Return the seconds of ``span``, in samples, in a sound of ``seconds`` seconds."""
    start = span.start / SAMPLE_RATE
    end = min(span.stop / SAMPLE_RATE, seconds)
    return Window(start, end)
