"""Write the weights of a stage as float16 safetensors: `python -m training.export`.

Without further flags the stage `merged` becomes the bundled model, 4.8 MB; with `--keep` a stage's
own weights are put where later runs can begin from them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from server.catalog.entries import BUNDLED
from training.models import refine
from training.train import KEPT, STAGES, Run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument(
        "--run", type=Path, default=Path("training/runs/default"), help="folder of the states"
    )
    parser.add_argument("--stage", default="merged", choices=[stage.name for stage in STAGES])
    parser.add_argument(
        "--keep", action="store_true", help="write to training/weights instead of server/bundled"
    )
    args = parser.parse_args()
    weights = Run(args.run, seed=0).weights(args.stage)
    out = KEPT / f"{args.stage}.safetensors"
    if not args.keep:
        weights = refine(weights, patch_size=2)
        out = BUNDLED.parent / "fashion-mnist.safetensors"
    out.parent.mkdir(exist_ok=True)
    save_file({key: value.to(torch.float16).contiguous() for key, value in weights.items()}, out)
    out.chmod(0o644)  # save_file leaves it to its owner alone
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
