"""Before: a LitServe application that classifies pictures with a ViT of timm.

python examples/from-litserve/litserve_app.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litserve
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

MODEL = Path("server/bundled/fashion-mnist.safetensors")
LABELS = Path("server/bundled/fashion-mnist.labels.txt")


class Garments(litserve.LitAPI):
    """The best class of a picture, in batches of up to 16 requests."""

    def setup(self, device: str) -> None:
        """Load the model in the process that will run it."""
        self.device = device
        self.labels = LABELS.read_text().splitlines()
        self.model = timm.create_model(
            "vit_tiny_patch16_224",
            checkpoint_path=str(MODEL),
            num_classes=10,
            in_chans=1,
            img_size=28,
            patch_size=2,
            embed_dim=128,
            depth=12,
            num_heads=4,
        )
        self.model = self.model.eval().to(device)
        self.transform = create_transform((1, 28, 28), crop_pct=1.0, mean=(0.2860,), std=(0.3530,))

    def decode_request(self, request) -> Tensor:  # an annotation would change what LitServe gives
        """Return the picture of a form, ``(1, 28, 28)``."""
        return self.transform(Image.open(request["image"].file).convert("L"))

    def batch(self, inputs: list[Tensor]) -> Tensor:
        """Return pictures ``(B, 1, 28, 28)``."""
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Tensor:
        """Return probabilities ``(B, 10)``."""
        return self.model(x.to(self.device)).softmax(dim=-1)

    def unbatch(self, output: Tensor) -> list[Tensor]:
        """Return the probabilities of each picture."""
        return list(output)

    def encode_response(self, output: Tensor) -> dict[str, Any]:
        """Return the best class."""
        score, index = output.max(dim=-1)
        return {"label": self.labels[index], "score": float(score)}


if __name__ == "__main__":
    api = Garments(max_batch_size=16, batch_timeout=0.01)
    litserve.LitServer(api, timeout=30).run(port=8001, generate_client_file=False)
