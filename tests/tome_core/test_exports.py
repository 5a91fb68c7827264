from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tome_core

# One interpreter for all orders: torch and timm stay loaded, only the package is forgotten between
# two imports.
_EACH_MODULE_FIRST = """
import importlib, sys
import torch, timm
for name in sys.argv[1:]:
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == "tome_core"]:
        del sys.modules[loaded]
    importlib.import_module(name)
    print(name)
"""


def test_all_is_sorted_and_complete() -> None:
    assert tome_core.__all__ == sorted(tome_core.__all__)
    assert set(tome_core.__all__) == set(tome_core._MODULES)
    # Other code relies upon these names.
    assert {"patch", "Schedule", "Trace", "UnsupportedModelError", "optimize"} <= set(
        tome_core.__all__
    )


@pytest.mark.parametrize("name", tome_core.__all__)
def test_each_name_can_be_imported(name: str) -> None:
    value = getattr(tome_core, name)
    assert value.__name__ == name
    assert value.__module__ == f"tome_core.{tome_core._MODULES[name]}"
    assert value.__doc__
    assert name in dir(tome_core)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tome_core.nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from tome_core import nothing")


def test_star_import() -> None:
    namespace: dict[str, object] = {}
    exec("from tome_core import *", namespace)
    assert set(tome_core.__all__) <= set(namespace)


def test_every_module_can_be_imported_first() -> None:
    root = Path(tome_core.__file__).parent
    paths = [path.relative_to(root.parent).with_suffix("") for path in sorted(root.rglob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    command = [sys.executable, "-W", "error", "-c", _EACH_MODULE_FIRST, *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names
