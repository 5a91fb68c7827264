"""The peer of `make bench-http`: LitServe in front of timm with the published ToMe code.

LitServe (``pip install --group bench``) batches and serves; what is here is what its documentation
has users write.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import litserve
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

import tome_core
from benchmarks.cases import DTYPES, Case, Model, Setup
from benchmarks.contenders import Published
from server.engine.device.dtype_choice import choose_dtype
from server.engine.device.placement import cpu_dtypes, pick_dtype
from server.hardware import usable_cores

FIELD = "file"
BATCH = 16
WAIT_SECONDS = 0.01
TOP = 5


class Classifier(litserve.LitAPI):
    """A multipart upload to the best classes of one image, in batches of many requests."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS)
        self.args = args

    def setup(self, device: str) -> None:
        """Load the model with random weights, in the process that will run it."""
        args = self.args
        torch.set_num_threads(args.threads)
        vit = timm.create_model(args.model).eval().to(device)
        data = resolve_data_config({}, model=vit)
        self.transform = create_transform(**data)
        where = torch.device(device)
        picked = pick_dtype(args.dtype, where)
        if picked is None:  # timed, as by the server
            plain = tome_core.patch(vit)
            size = data["input_size"]
            picked = choose_dtype(plain, cpu_dtypes(), size, (args.r,), args.model).dtype
        dtype = {known: name for name, known in DTYPES.items()}[picked]
        model = Model(args.model, vit.patch_embed.img_size[0], (args.r,))
        self.forward = Published(args.tome).build(
            Setup(vit, Case(model, dtype, BATCH, model.r), where, args.threads)
        )
        self.where = where

    def decode_request(self, request) -> Tensor:  # LitServe takes a request apart by its annotation
        """The picture of a form, as timm's own transform makes it for the model."""
        file: Any = request[FIELD]
        return self.transform(Image.open(file.file).convert("RGB"))

    def batch(self, inputs: list[Tensor]) -> Tensor:
        """Pictures ``(C, H, W)`` to ``(B, C, H, W)``."""
        return torch.stack(inputs)

    def predict(self, x: Tensor) -> Tensor:
        """Scores ``(B, classes)``."""
        with torch.inference_mode():
            return self.forward(x.to(self.where), self.args.r).float().softmax(-1)

    def unbatch(self, output: Tensor) -> list[Tensor]:
        """Scores of one image each."""
        return list(output)

    def encode_response(self, output: Tensor) -> dict[str, list[float]]:
        """The best classes, best first."""
        scores, classes = output.topk(TOP)
        return {"scores": scores.tolist(), "classes": classes.tolist()}


def main() -> None:
    """Serve ``/predict`` until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.litserve_peer", description=__doc__)
    parser.add_argument(
        "--tome", type=Path, required=True, help="checkout of github.com/facebookresearch/ToMe"
    )
    parser.add_argument(
        "--model", default="vit_small_patch16_224", help="timm name; default: %(default)s"
    )
    parser.add_argument("--dtype", default="auto", help="as the server's; default: %(default)s")
    parser.add_argument("--r", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8901, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: %(default)s")
    args = parser.parse_args()
    if why := Published(args.tome).missing(torch.device("cpu")):
        parser.error(why)
    server = litserve.LitServer(Classifier(args), accelerator="auto", timeout=120)
    server.run(port=args.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
