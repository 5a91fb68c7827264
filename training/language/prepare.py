"""Write the recordings as arrays: `python -m training.language.prepare`.

A role's file, such as train.npz, holds all its clips one after another at 8 kHz, the rate of a
telephone, in 8 bits a sample. Training then needs no library that reads sound.

What is held out is also written as folders of WAV files, `clips/Italian/...`, for `tome-serve
evaluate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from rich.progress import track

from training.language.clips import RATE, Clip, encode, save, wav_file
from training.language.corpus import LABELS, LANGUAGES, SOURCES, Recording, Role, recordings

DATA_FOLDER = Path("training/runs/language-data")
MAX_SECONDS = 8.0  # of a clip; what follows is cut off
MARGIN = 0.12  # seconds of silence that stay before and after speech
QUIET = 0.02  # of a clip's highest level: below it is silence

Samples = npt.NDArray[np.float32]


def read(recording: Recording) -> Samples:
    """Return the samples of ``recording``, mono, at `RATE`."""
    if recording.source.suffix == ".gsm":
        samples, rate = soundfile.read(
            recording.path,
            dtype="float32",
            samplerate=8000,
            channels=1,
            format="RAW",
            subtype="GSM610",
        )
    else:
        samples, rate = soundfile.read(recording.path, dtype="float32")
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE)
    return np.asarray(samples, np.float32)


def trimmed(samples: Samples) -> Samples:
    """Return ``samples (n,)`` with at most `MARGIN` of silence around them; empty if silent."""
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max(initial=0))
    if not len(loud):
        return samples[:0]
    margin = int(MARGIN * RATE)
    start = max(0, loud[0] - margin)
    end = min(len(samples), loud[-1] + margin, start + int(MAX_SECONDS * RATE))
    return samples[start:end]


def write_wav_files(folder: Path, clips: Sequence[Clip]) -> None:
    """Write each clip to the folder of its language in ``folder``."""
    for clip in clips:
        path = folder / LABELS[clip.label] / f"{clip.source}-{clip.prompt.replace('/', '-')}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav_file(clip))


def read_clips() -> dict[Role, list[Clip]]:
    """Return the clips of all recordings that are installed, by what they are for."""
    by_role: dict[Role, list[Clip]] = {role: [] for role in Role}
    for source in track(SOURCES, "read"):
        for recording in recordings(source):
            samples = trimmed(read(recording))
            if len(samples) == 0:
                continue
            label = LANGUAGES.index(source.language)
            clip = Clip(encode(samples), label, source.name, recording.prompt)
            by_role[recording.role].append(clip)
    return by_role


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.language.prepare", description=__doc__
    )
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder of the arrays")
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    for role, clips in read_clips().items():
        path = args.data / f"{role}.npz"
        save(path, clips)
        if role is not Role.TRAIN:
            write_wav_files(args.data / role, clips)
        minutes = sum(len(clip.codes) for clip in clips) / RATE / 60
        print(f"{path}: {len(clips)} clips, {minutes:.1f} minutes, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
