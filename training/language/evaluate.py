"""Accuracy by ``r`` on what was held out: `python -m training.language.evaluate WEIGHTS`.

Held-out clips are other prompts of the speakers that the model was trained on. Held-out speakers
are other people, on other microphones, in other packages. Both have a 95% interval (Wilson).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from training.language.accuracy import Windows, predictions, wilson, windows_of
from training.language.clips import Clip, load
from training.language.corpus import Role
from training.language.network import build
from training.language.train import DATA_FOLDER, LEVELS, merged

Row = dict[str, object]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.language.evaluate", description=__doc__
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder of the arrays")
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS, metavar="R")
    parser.add_argument("--out", type=Path, help="write the rows as JSON, too")
    parser.add_argument("--pool", choices=("token", "avg"), default="token")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = build(pool=args.pool)
    network.load_state_dict({k: v.float() for k, v in load_file(args.weights).items()})
    model = merged(network.eval())
    rows = []
    for role in (Role.HELD_OUT_CLIP, Role.HELD_OUT_SPEAKER):
        clips = load(args.data / f"{role}.npz")
        found = windows_of(clips, torch.device("cpu"))
        for r in track(args.levels, str(role)):
            hits = predictions(model, found, r=r) == found.labels
            rows += summary(role, r, clips, found, hits)
    for row in rows:
        print(json.dumps(row))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


def summary(role: Role, r: int, clips: Sequence[Clip], windows: Windows, hits: Tensor) -> list[Row]:
    """Return a row for the whole set, and one for each of its sources."""
    rows = [_row(role, "all", r, hits)]
    sources = [clip.source for clip in clips]
    for name in sorted(set(sources)):
        chosen = torch.tensor([source == name for source in sources])
        rows.append(_row(role, name, r, hits[chosen]))
    return rows


def _row(role: Role, source: str, r: int, hits: Tensor) -> Row:
    total = len(hits)
    right = int(hits.sum())
    low, high = wilson(right, total)
    return {
        "set": str(role),
        "source": source,
        "r": r,
        "clips": total,
        "accuracy": round(100 * right / total, 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
    }


if __name__ == "__main__":
    main()
