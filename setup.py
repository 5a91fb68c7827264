"""The compiled part of the package; everything else is in pyproject.toml."""

import copy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

_FOLDER = "tome_core/backends/cpu"
_SOURCES = (
    "attention",
    "bipartite",
    "encoder",
    "linear",
    "merging",
    "norm",
    "pairs",
    "processor",
)
_HEADERS = ("simd", "functions", "kernels", "largest", "matching", "products")
# GCC 12 takes undefined operands in its own headers of AVX-512 for mistakes (its bug 105593).
_WARNINGS = ("-Wall", "-Wextra", "-Wno-maybe-uninitialized")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")


def _library(name: str, *flags: str) -> Extension:
    """One library of kernels.

    Plain C++, loaded with ctypes: no headers of Python or torch. OpenMP's symbols come from torch
    at run time, hence no -fopenmp for the linker. Where it cannot be compiled the installation goes
    on: without the one for bfloat16, or without any, PyTorch's kernels are used.
    """
    return Extension(
        f"tome_core.backends.cpu.{name}",
        sources=[f"{_FOLDER}/{source}.cpp" for source in _SOURCES],
        depends=[f"{_FOLDER}/{header}.h" for header in _HEADERS],
        language="c++",
        optional=True,
        extra_compile_args=[
            *("-O3", "-g0", "-std=c++17", "-fopenmp", "-fvisibility=hidden"),
            *_WARNINGS,
            *_AVX512,
            *flags,
        ],
    )


def _resampling(name: str, *flags: str) -> Extension:
    """The resizing of images, bit for bit as Pillow's. Without it Pillow resizes.

    Contracting a product and a sum into one instruction would round once where Pillow does twice.
    """
    return Extension(
        f"server.imaging.{name}",
        sources=["server/imaging/resampling.cpp"],
        language="c++",
        optional=True,
        extra_compile_args=[
            *("-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off"),
            *_WARNINGS,
            *flags,
        ],
    )


class BuildApart(build_ext):
    """Keeps the object files of the libraries apart, since these share their sources."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one library in a folder of its own."""
        apart = copy.copy(self)
        apart.build_temp = str(Path(self.build_temp, ext.name))
        build_ext.build_extension(apart, ext)


# The same sources for each type of activations: a library asks for no instruction that it does not
# use.
setup(
    ext_modules=[
        _library("_kernels_avx512"),
        _library("_kernels_avx512_bf16", "-DTOME_BF16", "-mavx512bf16"),
        _resampling("_resampling"),
        _resampling("_resampling_avx2", "-mavx2"),
    ],
    cmdclass={"build_ext": BuildApart},
)
