"""Loading the compiled library, and running without it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import torch

import tome_core
from tests.tome_core.backends.cpu.helpers import needs_avx512, one_thread, random
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.library import load_library


def test_without_compiled_kernels_results_are_equal_and_one_warning_is_logged(
    tmp_path: Path,
) -> None:
    """Runs a copy of the package without the compiled library, in its own process."""
    root = Path(tome_core.__file__).parent
    for source in root.rglob("*.py"):
        target = tmp_path / "tome_core" / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    program = """
import logging, torch, tome_core
from timm.models.vision_transformer import VisionTransformer
logging.basicConfig(format="%(message)s")
torch.manual_seed(0)
network = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2)
model = tome_core.patch(network.eval())
images = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    for fast in (tome_core.optimize(model), tome_core.optimize(model)):
        torch.testing.assert_close(fast(images, r=3), model(images, r=3), rtol=0, atol=1e-4)
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("the CPU kernels are not compiled") == 1


@needs_avx512
def test_set_num_threads_applies_in_every_thread() -> None:
    packed = kernels.pack_linear(random(8, 4, seed=1, dtype=torch.float32), None)
    library = load_library()
    assert library is not None
    mlp_rows = []

    def run_kernel() -> None:
        x = random(1, 4, seed=2, dtype=torch.float32)
        kernels.linear(x, packed)
        mlp_rows.append(library.tome_mlp_rows())  # proportional to the threads of OpenMP

    with one_thread():
        thread = threading.Thread(target=run_kernel)
        thread.start()
        thread.join()
        assert mlp_rows == [library.tome_mlp_rows()]
