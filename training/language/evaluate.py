"""Accuracy by ``r`` on what was held out: `python -m training.language.evaluate`.

The bundled model and its twin, which was trained without merging, classify the same clips: other
prompts of the speakers that were trained on, and other people, on other microphones, in other
packages. The clips are WAV files at 8 kHz, which the server's own front end and kernels take. The
tables are Markdown, in percent, with 95% intervals (Wilson) and with the standard errors of the
losses, in pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from server.audio.front_end import prepare
from server.catalog.entries import BUNDLED_SOUND, read_catalog
from server.commands.offline import load_runner, parse_schedule
from server.engine.execution.runner import Runner
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform
from server.settings import ModelSettings
from training.language.accuracy import Windows, clip_classes
from training.language.clips import Clip, load, wav_file
from training.language.corpus import Role
from training.language.train import DATA_FOLDER, LEVELS
from training.tables import accuracy, loss_of, markdown

TWIN = Path("training/spoken-language-twin.toml")
BATCH = 50  # windows
TITLES = {Role.HELD_OUT_CLIP: "Held-out clips", Role.HELD_OUT_SPEAKER: "Held-out speakers"}


@dataclass(frozen=True)
class Result:
    """Which clips of a role a model classified right: ``(clips,)`` for each schedule."""

    model: str
    role: Role
    hits: dict[str, Tensor]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.language.evaluate", description=__doc__
    )
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder of the arrays")
    parser.add_argument(
        "--config",
        type=Path,
        nargs="+",
        default=(BUNDLED_SOUND, TWIN),
        help="files whose first model is evaluated; default: the bundled model's and its twin's",
    )
    levels = [str(level) for level in LEVELS]
    parser.add_argument("--levels", nargs="+", default=levels, metavar="R", help="schedules")
    parser.add_argument("--threads", type=int, default=0, help="default: one a core")
    args = parser.parse_args()
    settings = ModelSettings(threads=args.threads, dtype="float32", log_level="warning")
    catalogs = [read_catalog(path, (), profiles=False) for path in args.config]
    runners = [load_runner(settings, catalog[0]) for catalog in catalogs]
    schedules = list(dict.fromkeys(["0", *args.levels]))  # r=0 first, the baseline of the losses
    for role, title in TITLES.items():
        clips = load(args.data / f"{role}.npz")
        results = [evaluate(runner, role, clips, schedules) for runner in runners]
        print(f"\n{title}: {len(clips):,} clips\n")
        print(table_by_schedule(runners[0], results))
        print()
        print(table_by_source(clips, results, schedules))


def windows_as_served(clips: Sequence[Clip], transform: AudioTransform) -> Windows:
    """Return the windows of ``clips`` as the server cuts and prepares them."""
    limits = AudioLimits()
    inputs = [prepare(wav_file(clip), transform, limits).inputs for clip in clips]
    counts = torch.tensor([len(windows) for windows in inputs])
    return Windows(
        inputs=torch.from_numpy(np.concatenate(inputs)),
        clips=torch.repeat_interleave(torch.arange(len(clips)), counts),
        labels=torch.tensor([clip.label for clip in clips]),
    )


def evaluate(runner: Runner, role: Role, clips: Sequence[Clip], schedules: list[str]) -> Result:
    """Classify ``clips`` under each schedule."""
    transform = runner.model.transform
    assert isinstance(transform, AudioTransform)
    found = windows_as_served(clips, transform)
    hits = {}
    for text in track(schedules, f"{runner.model.spec.name}, {role}"):
        schedule = parse_schedule(runner, text)
        logits = [
            runner.logits(batch.numpy(), [schedule] * len(batch)).cpu()
            for batch in found.inputs.split(BATCH)
        ]
        hits[text] = clip_classes(torch.cat(logits), found) == found.labels
    return Result(runner.model.spec.name, role, hits)


def table_by_schedule(runner: Runner, results: Sequence[Result]) -> str:
    """Return a table of accuracies and losses, a row for each schedule."""
    header = ["`r`", "tokens left", "FLOPs"]
    for result in results:
        header += [f"{result.model}: accuracy, %", "loss"]
    rows = []
    cost = runner.model.network.cost()
    for text in results[0].hits:
        tokens = runner.tokens(parse_schedule(runner, text))
        row = [text, str(tokens[-1]), f"{cost.relative(tokens):.0%}"]
        for result in results:
            row += [accuracy(result.hits[text]), loss_of(result.hits["0"], result.hits[text])]
        rows.append(row)
    return markdown(header, rows)


def table_by_source(
    clips: Sequence[Clip],
    results: Sequence[Result],
    schedules: Sequence[str],
) -> str:
    """Return a table of accuracies, a row for each source, without merging and with the most."""
    shown = list(dict.fromkeys([schedules[0], schedules[-1]]))
    header = ["source", "clips"]
    header += [f"{result.model}, `r={text}`" for result in results for text in shown]
    sources = [clip.source for clip in clips]
    rows = []
    for source in sorted(set(sources)):
        chosen = torch.tensor([each == source for each in sources])
        row = [source, str(int(chosen.sum()))]
        row += [accuracy(result.hits[text][chosen]) for result in results for text in shown]
        rows.append(row)
    return markdown(header, rows)


if __name__ == "__main__":
    main()
