"""Loading the compiled libraries, running with a lower instruction set, and without any."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import tome_core
from tests.tome_core.backends.cpu.helpers import (
    HAS_AVX512,
    HAS_BFLOAT16,
    needs_avx512,
    random,
    thread_count,
)
from tome_core.backends.cpu import kernels, library
from tome_core.backends.cpu.library import DTYPES, limit_isa, load_library
from tome_core.backends.cpu.strategy import KernelStrategy
from tome_core.backends.cpu.structures import BlockWeights, EncodeArguments
from tome_core.rules import RULE_NAMES

ROOT = Path(tome_core.__file__).parents[1]
SOURCES = Path(library.__file__).parent
NETWORK = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2}
MIXED_R = [0, 4, 9, 4]

# Instructions of AVX-512 beyond F, BW, DQ and VL (Intel's manual, volume 2): of bfloat16, VNNI,
# IFMA, VBMI, VBMI2, BITALG, VPOPCNTDQ, CD, GFNI and VAES.
_BEYOND_AVX512 = re.compile(
    r"vdpbf16ps|vcvtne\w+|vpdp\w+|vpmadd52\w+|vperm(b|i2b|t2b)|vpmultishiftqb|vpcompress[bw]"
    r"|vpexpand[bw]|vpsh[lr]d\w+|vpopcnt\w+|vpshufbitqmb|vpconflict\w+|vplzcnt\w+"
    r"|vpbroadcastm\w+|vgf2p8\w+|vaes\w+"
)


@pytest.fixture
def isa_is_reset() -> Iterator[None]:
    before = library._limit
    library._allowed.cache_clear()
    yield
    library._limit = before
    library._allowed.cache_clear()


def compiled(isa: str) -> Path:
    """The library of ``isa`` in the package."""
    (path,) = SOURCES.glob(f"_kernels_{isa}.*so")
    return path


def instructions(path: Path, function: str = "") -> set[str]:
    """The mnemonics of the machine code in ``path``, or of one of its functions."""
    options = [f"--disassemble={function}"] if function else ["--disassemble"]
    command = ["objdump", "--no-show-raw-insn", *options, str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    code = [line.split("\t")[1] for line in lines if line.startswith(" ") and "\t" in line]
    return {text.split()[0] for text in code}


@needs_avx512
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump reads machine code")
def test_a_library_needs_only_the_instructions_that_it_is_named_for() -> None:
    of_float32 = instructions(compiled("avx512"))
    of_bfloat16 = instructions(compiled("avx512_bf16"))
    assert "vfmadd231ps" in of_float32
    assert not {name for name in of_float32 if _BEYOND_AVX512.fullmatch(name)}
    assert {name for name in of_bfloat16 if _BEYOND_AVX512.fullmatch(name)} == {
        "vdpbf16ps",
        "vcvtne2ps2bf16",
        "vcvtneps2bf16",
    }


@needs_avx512
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump reads machine code")
@pytest.mark.parametrize("isa", DTYPES.values())
def test_a_library_can_be_asked_on_a_processor_without_its_instructions(isa: str) -> None:
    names = instructions(compiled(isa), "tome_supported")
    assert names & {"ret", "retq"}  # older versions of objdump print the second
    assert not {name for name in names if name.startswith("v")}


def test_functions_structures_and_rules_are_those_of_the_header() -> None:
    header = re.sub("//.*", "", (SOURCES / "kernels.h").read_text())
    types_of_values = {
        "int64_t": ctypes.c_int64,
        "float": ctypes.c_float,
        "bool": ctypes.c_bool,
        "Rule": ctypes.c_int32,
    }

    def declarations(text: str, end: str) -> list[tuple[str, Any]]:
        """Names and types of parameters or fields."""
        found = re.findall(rf"([\w ]+)(\*?) (\w+)(?:{end}|$)", text)
        return [
            (name, ctypes.c_void_p if star else types_of_values[kind.strip()])
            for kind, star, name in found
        ]

    for structure in (BlockWeights, EncodeArguments):
        (fields,) = re.findall(rf"struct {structure.__name__} {{(.*?)}};", header, re.DOTALL)
        assert declarations(fields, ";") == [*structure._fields_]
    for name, types in library._SIGNATURES.items():
        (parameters,) = re.findall(rf"tome_{name}\((.*?)\);", header, re.DOTALL)
        if name != "encode":
            assert [kind for _, kind in declarations(parameters, ",")] == types
    (rules,) = re.findall(r"enum Rule : int32_t {(.*?)};", header)
    assert [rule.strip().removeprefix("k").lower() for rule in rules.split(",")] == [*RULE_NAMES]


@needs_avx512
def test_a_library_compiled_with_other_structures_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(library._SIZES, "tome_encode_bytes", BlockWeights)
    with pytest.raises(ValueError, match="tome_encode_bytes is 152, not 112"):
        library._open(compiled("avx512"))


@needs_avx512
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_the_compiler_has_nothing_to_warn_of(monkeypatch: pytest.MonkeyPatch) -> None:
    built: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", built.update)
    runpy.run_path(str(ROOT / "setup.py"))
    of_kernels = [one for one in built["ext_modules"] if "_kernels_" in one.name]
    assert len(of_kernels) == len(DTYPES)
    for extension in of_kernels:
        flags = [*extension.extra_compile_args, "-Werror", "-fsyntax-only"]
        subprocess.run(["g++", *flags, *SOURCES.glob("*.cpp")], check=True)


def logits(dtype: torch.dtype) -> Tensor:
    """Of a mixed batch by a network that is optimised now; the weights are always the same."""
    torch.manual_seed(0)
    vit = VisionTransformer(**NETWORK).eval()
    model = tome_core.optimize(tome_core.patch(vit), dtype)
    uses_kernels = isinstance(model.execution.strategy, KernelStrategy)
    assert uses_kernels == (model.encoder is not None) == kernels.supports(dtype)
    images = random(len(MIXED_R), 3, 32, 32, seed=1, dtype=torch.float32)
    with torch.no_grad():
        return model(images, r=MIXED_R).float()


def test_each_instruction_set_gives_the_same_results(isa_is_reset: None) -> None:
    limit_isa("none")
    assert not any(map(kernels.supports, DTYPES))
    expected = {dtype: logits(dtype) for dtype in DTYPES}
    limit_isa("avx512")
    assert kernels.supports(torch.float32) == HAS_AVX512
    assert not kernels.supports(torch.bfloat16)
    exact = logits(torch.float32)
    torch.testing.assert_close(exact, expected[torch.float32], rtol=0, atol=1e-4)
    assert torch.equal(logits(torch.bfloat16), expected[torch.bfloat16])
    limit_isa("avx512_bf16")
    assert kernels.supports(torch.bfloat16) == HAS_BFLOAT16
    assert torch.equal(logits(torch.float32), exact)
    rounded = logits(torch.bfloat16)
    torch.testing.assert_close(rounded, expected[torch.bfloat16], rtol=0, atol=5e-2)
    limit_isa("auto")
    assert torch.equal(logits(torch.float32), exact)
    assert torch.equal(logits(torch.bfloat16), rounded)


def test_the_environment_forces_a_lower_instruction_set(
    isa_is_reset: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library._limit = None
    monkeypatch.setenv("TOME_CPU_ISA", "none")
    assert load_library(torch.float32) is None
    monkeypatch.setenv("TOME_CPU_ISA", "")
    assert (load_library(torch.float32) is not None) == HAS_AVX512
    monkeypatch.setenv("TOME_CPU_ISA", "avx2")
    message = "TOME_CPU_ISA is 'avx2'; use one of avx512, avx512_bf16, none, auto"
    with pytest.raises(ValueError, match=message):
        load_library(torch.float32)
    with pytest.raises(ValueError, match=message):
        limit_isa("avx2")


def test_a_processor_without_the_forced_instruction_set_runs_what_it_has(
    isa_is_reset: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on a processor with AVX-512 from before bfloat16."""
    load = library._load
    monkeypatch.setattr(library, "_load", lambda isa: None if "bf16" in isa else load(isa))
    with caplog.at_level(logging.WARNING, library.__name__):
        limit_isa("avx512_bf16")
        assert (load_library(torch.float32) is not None) == HAS_AVX512
        assert load_library(torch.bfloat16) is None
    message = "TOME_CPU_ISA is avx512_bf16, which cannot be used here; lower ones are"
    logged = [record.getMessage() for record in caplog.records]
    # Where no kernels are compiled, another line may say so.
    assert [line for line in logged if line.startswith("TOME_CPU_ISA")] == [message]


@needs_avx512
@pytest.mark.slow
def test_a_compiler_that_does_not_know_bfloat16_builds_the_rest(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *bf16*) echo "unrecognized option" >&2; exit 1;; esac\n'
        'exec /usr/bin/env g++ "$@" -O0\n'
    )
    compiler.chmod(0o755)
    built = tmp_path / "built"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(built)]
    environment = os.environ | {"CXX": str(compiler), "CC": str(compiler)}
    subprocess.run(
        [*command, "--build-temp", str(tmp_path / "objects")],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=environment,
    )
    (path,) = built.rglob("_kernels_*.so")
    assert path.name.startswith("_kernels_avx512.")
    assert library._open(path).tome_supported()


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
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "TOME_CPU_ISA": ""}
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("the CPU kernels for avx512 are not compiled") == 1


@needs_avx512
def test_set_num_threads_applies_in_every_thread() -> None:
    packed = kernels.pack_linear(random(8, 4, seed=1, dtype=torch.float32), None)
    threads = []

    def run_kernel() -> None:
        x = random(1, 4, seed=2, dtype=torch.float32)
        kernels.linear(x, packed)
        threads.append(ctypes.CDLL(None).omp_get_max_threads())

    with thread_count(1):
        thread = threading.Thread(target=run_kernel)
        thread.start()
        thread.join()
    assert threads == [1]
