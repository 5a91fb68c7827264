"""Whether tensors on a fake GPU work here."""

from __future__ import annotations

import pytest
import torch

needs_fake_cuda = pytest.mark.skipif(
    torch.__version__ < "2.10" and not torch.cuda.is_available(),
    reason=(
        "before PyTorch 2.10 tensors on a fake GPU need a driver: every slice of one asks for it"
    ),
)
