"""What the package brings along, and what it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tome_client
from server import errors
from tests.server.conftest import ROOT
from tome_client.calls import chunks, parameters


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_exports_are_sorted_and_there():
    assert tome_client.__all__ == sorted(tome_client.__all__)
    assert all(hasattr(tome_client, name) for name in tome_client.__all__)


def test_it_needs_nothing_that_the_server_needs():
    loaded = "import sys, tome_client; print(*{name.partition('.')[0] for name in sys.modules})"
    found = set(run(loaded).split())
    assert not found & {
        "torch",
        "timm",
        "numpy",
        "PIL",
        "fastapi",
        "pydantic",
        "server",
        "tome_core",
    }


def test_without_numpy_features_are_an_array(default_server):
    code = """import sys; sys.modules["numpy"] = None
import tome_client
features = tome_client.Client(sys.argv[1]).embed("examples/bag.png", r=16)
print(type(features).__name__, len(features), features.itemsize)"""
    assert run(code, default_server.url) == "array 128 4"


def test_every_error_of_the_server_has_its_class():
    theirs = {
        kind.__name__: kind.slug
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.RequestError)
        and kind is not errors.RequestError
    }
    ours = {kind.__name__: kind.slug for kind in tome_client.ProblemError.__subclasses__()}
    assert ours == theirs
    assert set(ours) <= set(tome_client.__all__)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1] * 33, [16, 16, 1]),
        ([5_000_000] * 3, [1, 1, 1]),
        ([9_000_000, 1], [1, 1]),
        ([8_000_000], [1]),
    ],
)
def test_chunks(sizes, expected):
    assert [len(chunk) for chunk in chunks(b"x" * size for size in sizes)] == expected


def test_parameters():
    assert parameters(r=[30, 0, 5], top_k=None, deadline_ms=1.5) == {
        "r": "30,0,5",
        "deadline_ms": "1.5",
    }
    assert parameters(r=16) == parameters(r="16") == {"r": "16"}
