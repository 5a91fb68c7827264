"""Ahead-of-time compilation without a GPU.

Usage: ``python -m tests.tome_core.backends.cuda.compiler MODULE 90 ...``. Compiles the kernels of
``MODULE.CASES`` and prints a JSON list of `Compiled`. It runs in a separate process, because
kernels cannot be compiled where they are interpreted.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 89, 90, 100)


@dataclass(frozen=True)
class Case:
    """One variant of a kernel.

    Attributes:
        types: of each argument that is not a constant, as Triton spells them: ``*bf16``, ``i32``.
        constants: the others.
        aligned: arguments that are, or are pointers to, multiples of 16.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: Sequence[str]
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Compiled:
    """The resources that a compiled kernel uses.

    Attributes:
        registers: of 32 bits, for each thread.
        stack: bytes for each thread; holds spilled registers.
        shared: bytes of shared memory for each program.
        widest: bits of the widest access to global memory.
        products: tensor core instructions in the PTX.
    """

    name: str
    capability: int
    registers: int
    stack: int
    shared: int
    widest: int
    products: list[str]


def compile_in_process(module: str, capabilities: Sequence[int]) -> list[Compiled]:
    """Compile ``CASES`` of ``module`` in a process where nothing is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "tests.tome_core.backends.cuda.compiler",
        module,
        *map(str, capabilities),
    ]
    printed = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return [Compiled(**found) for found in json.loads(printed)]


def compile_case(case: Case, capability: int) -> Compiled:
    """Compile for NVIDIA GPUs of one compute capability, times ten."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {
        name: "constexpr" if name in case.constants else case.types[name] for name in names
    }
    attributes: Any = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = ASTSource(
        fn=case.kernel, signature=signature, constexprs=case.constants, attrs=attributes
    )
    options = {"num_warps": case.warps, "num_stages": case.stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = kernel.asm["ptx"]
    usage = _usage(kernel.asm["cubin"])
    return Compiled(
        name=case.name,
        capability=capability,
        registers=usage["REG"],
        stack=usage["STACK"],
        shared=kernel.metadata.shared,
        widest=_widest(ptx),
        products=sorted(set(re.findall(r"(wgmma|tcgen05\.mma|(?<!wg)mma\.sync)", ptx))),
    )


def _usage(cubin: bytes) -> dict[str, int]:
    """The registers and stack of a compiled kernel, by the names that cuobjdump prints."""
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", printed)}


def _widest(ptx: str) -> int:
    accesses = re.findall(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], 0x(\w+)", ptx)
    widths = [int(count or 1) * int(bits) for count, bits in accesses] + [
        8 * int(size, 16) for size in copies
    ]
    return max(widths, default=0)


if __name__ == "__main__":
    cases = importlib.import_module(sys.argv[1]).CASES
    found = [compile_case(case, int(capability)) for case in cases for capability in sys.argv[2:]]
    sys.stdout.write(json.dumps([asdict(compiled) for compiled in found]))
