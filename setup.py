"""The compiled part of the package; everything else is in pyproject.toml."""

from setuptools import Extension, setup

# Plain C++, loaded with ctypes: no headers of Python or torch. OpenMP's symbols come from torch at
# run time, hence no -fopenmp for the linker. Where it cannot be compiled the installation goes on,
# and PyTorch's kernels are used.
setup(
    ext_modules=[
        Extension(
            "tome_core.backends.cpu._kernels",
            sources=[
                f"tome_core/backends/cpu/{name}.cpp"
                for name in ("attention", "encoder", "linear", "merging", "norm")
            ],
            depends=[
                f"tome_core/backends/cpu/{name}.h"
                for name in ("simd", "functions", "kernels", "products")
            ],
            language="c++",
            optional=True,
            extra_compile_args=[
                *("-O3", "-g0", "-w", "-std=c++17", "-fopenmp", "-fvisibility=hidden"),
                *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
            ],
        )
    ]
)
