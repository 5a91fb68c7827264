"""Write the weights of a stage as float16 safetensors: `python -m training.export`.

By default the command writes the stage `merged` as the bundled model (4.8 MB). With `--keep` it
writes the stage's weights to training/weights, from which later runs can start.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from server.catalog.entries import BUNDLED
from training.models import refine
from training.stages import default_device, default_recipe
from training.states import save_weights
from training.train import (
    RUNS_FOLDER,
    STAGES,
    WEIGHTS_FOLDER,
    Run,
)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        default=RUNS_FOLDER / default_recipe(default_device()),
        help="folder of the run; default: that of the recipe for this machine",
    )
    parser.add_argument("--stage", default="merged", choices=[stage.name for stage in STAGES])
    parser.add_argument(
        "--keep", action="store_true", help="write to training/weights instead of server/bundled"
    )
    args = parser.parse_args()
    weights = Run(args.run, seed=0).weights(args.stage)
    out = WEIGHTS_FOLDER / f"{args.stage}.safetensors"
    if not args.keep:
        weights = refine(weights, patch_size=2)
        out = BUNDLED.parent / "fashion-mnist.safetensors"
    out.parent.mkdir(exist_ok=True)
    save_weights(out, weights)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
