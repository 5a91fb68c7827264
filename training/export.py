"""Write the bundled model from a run: `python -m training.export`. The weights are stored as float16, 4.8 MB."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from server.catalog import BUNDLED
from training.models import refine
from training.train import STAGES, Run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("training/runs/default"), help="folder of the states")
    parser.add_argument("--stage", default="merged", choices=[s.name for s in STAGES if s.patch_size])
    parser.add_argument("--out", type=Path, default=BUNDLED.parent / "fashion-mnist.safetensors")
    args = parser.parse_args()
    weights = refine(Run(args.run, seed=0).weights(args.stage), patch_size=2)
    save_file({key: value.to(torch.float16).contiguous() for key, value in weights.items()}, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
