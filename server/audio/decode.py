"""Decode a sound into mono samples of one rate, block by block, and count what comes.

A header is no promise: seconds and bytes are counted as they are decoded, and no memory is
allocated by a header. Of the decoded blocks only the resampled mono sound stays.

A file that says how long it is must have all of it: one that ends earlier is truncated or damaged,
and is refused. Where a file does not say so, what is there is the sound.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile

from server.audio.counts import check_decoded, check_header
from server.audio.formats import open_stream
from server.audio.resample import Resampler
from server.errors import BadMedia, RequestError
from server.media.decoded import SoundInfo
from server.media.limits import AudioLimits

log = logging.getLogger("tome.decode")

_BLOCK_FRAMES = 16_384
# A float file may hold any number. Full scale is 1, or 2**31 where a program forgot to divide; the
# energy of larger ones is no float32.
_MAX_SAMPLE = 2.0**31
# What libsndfile says of a file that does not say how long it is.
_UNKNOWN_FRAMES = 2**63 - 1


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """A sound file that is read once, from its beginning on.

    Of a file that can seek, soundfile seeks to where it is after every read. libsndfile fails at
    that in a FLAC that does not say how long it is.
    """

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class Sound:
    """A decoded sound: ``samples``, float32 ``(S,)``, mono and resampled; full scale is 1."""

    samples: npt.NDArray[np.float32]
    media: SoundInfo


def decode(body: bytes, sample_rate: int, limits: AudioLimits) -> Sound:
    """Decode ``body`` into samples at ``sample_rate`` (Hz), the mean of its channels.

    Raises:
        BadMedia: the sound is empty, corrupt or truncated, or has samples that are no numbers.
        UnsupportedFormat: it is in none of `server.audio.formats.FORMATS`.
        TooLarge: it exceeds a limit.
        MemoryError: it takes more memory than this process may have.
    """
    if not body:
        raise BadMedia("the body is empty; send a sound file")
    stream = open_stream(body, limits)
    try:
        with _ForwardFile(io.BytesIO(stream.body)) as file:
            check_header(file.samplerate, file.channels, limits)
            return _decode(file, sample_rate, limits)
    except (RequestError, MemoryError):
        raise
    except Exception as error:
        # The libraries raise exceptions of many types. Their texts are not for clients.
        log.debug("cannot decode a sound: %r", error)
        raise BadMedia("the sound is corrupt or truncated") from None


def _decode(file: _ForwardFile, sample_rate: int, limits: AudioLimits) -> Sound:
    resampler = Resampler(file.samplerate, sample_rate)
    frames = 0
    for block in _read_blocks(file):
        frames += len(block)
        check_decoded(frames, file.samplerate, file.channels, limits)
        resampler.add(_mix(block))
    if frames < file.frames and file.frames != _UNKNOWN_FRAMES:
        raise BadMedia("the sound is truncated or damaged: it is shorter than its header says")
    if frames == 0:
        raise BadMedia("the sound has no samples")
    media = SoundInfo(
        seconds=frames / file.samplerate,
        sample_rate=file.samplerate,
        channels=file.channels,
    )
    return Sound(resampler.finish(), media)


def _read_blocks(file: _ForwardFile) -> Iterator[npt.NDArray[np.float32]]:
    """Yield blocks ``(n, channels)``; each is valid until the next.

    Not more is read than the file says that it has: behind the last frame of a FLAC there may be
    tags, which its decoder does not understand.
    """
    buffer = np.empty((_BLOCK_FRAMES, file.channels), np.float32)
    left = file.frames
    while left > 0:
        block = file.read(out=buffer[: min(left, _BLOCK_FRAMES)])
        if len(block) == 0:
            return
        left -= len(block)
        yield block


def _mix(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the mean ``(n,)`` of the channels."""
    channels = block.shape[1]
    # A product is 20 times as fast as `mean` of few channels.
    shares = np.full(channels, 1 / channels, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        mono = block @ shares
        peak = np.abs(mono).max()
    # No comparison with NaN is true.
    if not peak <= _MAX_SAMPLE:
        raise BadMedia(
            "the sound has samples that are not finite numbers, or far beyond full scale"
        )
    return mono
