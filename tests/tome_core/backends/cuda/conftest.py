"""The kernels run on a GPU if there is one, otherwise in Triton's interpreter on the CPU.

The interpreter must be enabled before Triton is imported, which timm does too. If Triton is
imported already, nothing is collected here, and `tests/tome_core/backends/test_cuda.py` runs these
tests in a separate process.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

if not torch.cuda.is_available() and not isinstance(tl.sum, InterpretedFunction):
    collect_ignore_glob = ["test_*.py"]
