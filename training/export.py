"""Write the weights of a stage as float16 safetensors: `python -m training.export`.

Without options the command writes the bundled model (4.8 MB), from the weights of `merged` in
training/weights. With `--run` it takes the weights from a run. With `--out` it writes them to
another file as they are, such as one in training/weights, from which later runs can start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from server.catalog.entries import BUNDLED
from server.errors import ConfigError
from training.models import refine
from training.states import read_state, read_weights, save_weights
from training.train import STAGES, WEIGHTS_FOLDER


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument(
        "--run", type=Path, help="folder of a run; default: the weights in training/weights"
    )
    parser.add_argument("--stage", default="merged", choices=[stage.name for stage in STAGES])
    parser.add_argument("--out", type=Path, help="file to write instead of the bundled model")
    args = parser.parse_args(arguments)
    if args.stage == "teacher" and args.out is None:
        parser.error("the teacher is not the bundled model's network; name another file with --out")
    try:
        weights = weights_of(args.run, args.stage)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    out = args.out
    if out is None:
        out = BUNDLED.with_name("fashion-mnist.safetensors")
        weights = refine(weights, patch_size=2)
    save_weights(out, weights)
    print(f"{out}: {out.stat().st_size:,} bytes")
    return 0


def weights_of(run: Path | None, stage: str) -> dict[str, Tensor]:
    """Return the float32 weights of ``stage``: of a run, or else those in training/weights.

    Raises:
        ConfigError: there are none.
    """
    path = WEIGHTS_FOLDER / f"{stage}.safetensors" if run is None else run / f"{stage}.pt"
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}; --run names the folder of a run that has trained {stage}"
        )
    return read_weights(path) if run is None else read_state(path)


if __name__ == "__main__":
    sys.exit(main())
