"""Attention, norms, GELU and patches compiled for GPUs that need not be there."""

from __future__ import annotations

import pytest

from tests.tome_core.backends.cuda.compiler import compile_in_process

PRODUCT = {80: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}
SHARED = {80: 163, 89: 99, 90: 227, 100: 227}  # KiB that a program may have


@pytest.mark.parametrize(
    "capability",
    [90, *(pytest.param(other, marks=pytest.mark.slow) for other in PRODUCT if other != 90)],
)
def test_nothing_spills_and_attention_uses_tensor_cores(capability: int) -> None:
    for compiled in compile_in_process("tests.tome_core.backends.cuda.cases", [capability]):
        assert compiled.stack == 0, compiled
        assert compiled.shared <= SHARED[capability] * 1024, compiled
        # Pixels of patches of 14 lie in runs of 14 bytes.
        assert compiled.widest >= (64 if " 14 " in compiled.name else 128), compiled
        if compiled.name.startswith("attention") and "fp32" not in compiled.name:
            assert compiled.products == [PRODUCT[capability]], compiled
