"""The arrows between packages and modules, checked on the source: no rule here needs anything to be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tome_core", "server", "tome_client")
MAX_LINES = 300


@dataclass(frozen=True)
class Rule:
    """Modules at or below ``where`` (less ``exempt``) import nothing at or below ``never`` (less ``allowed``)."""

    where: str
    never: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()


RULES = [
    Rule("tome_core", never=("server", "fastapi", "starlette", "uvicorn")),
    Rule("tome_core", never=("timm",), exempt=("tome_core.adapters",)),
    Rule(
        "tome_core",
        never=("tome_core.adapters",),
        exempt=("tome_core.adapters", "tome_core.patching", "tome_core.optimizing"),
    ),
    # Triton is not there on every machine.
    Rule("tome_core", never=("triton",), exempt=("tome_core.triton",)),
    Rule("tome_core.schedule", never=("torch", "numpy", "tome_core")),
    Rule("tome_core.cost", never=("torch", "numpy", "tome_core")),
    Rule("tome_core.errors", never=("torch", "timm", "tome_core")),
    # The API process prices and decodes; it never builds or runs a model.
    Rule("server.api", never=("torch", "timm"), exempt=()),
    Rule("server.api", never=("tome_core",), allowed=("tome_core.schedule",)),
    Rule(
        "server.api",
        never=("server.engine",),
        allowed=("server.engine.client", "server.engine.lease", "server.engine.pool"),
    ),
    Rule("server.engine", never=("server.api", "fastapi", "starlette", "uvicorn")),
    # The policy is pure: it is tested without torch or a clock.
    *(
        Rule(f"server.engine.{name}", never=("torch", "timm", "time"))
        for name in ("scheduler", "choosing", "calibration")
    ),
    Rule("server.engine.batch_limit", never=("torch", "time", "server")),
    *(
        Rule(f"server.engine.{name}", never=("torch", "timm"))
        for name in ("client", "supervisor", "pool", "lease", "fleet", "health", "heart", "isolation")
    ),
    Rule("server.engine.health", never=("time", "asyncio", "subprocess")),
    # A load generator shares the machine with the server it measures, and none of its heavy parts.
    Rule(
        "server.load",
        never=("server", "tome_core", "torch", "timm", "numpy", "fastapi", "starlette", "uvicorn"),
        allowed=("server.load", "server.errors", "server.keys", "tome_core.schedule"),
    ),
    Rule("server.load.arrivals", never=("server", "asyncio", "time")),
    Rule(
        "server.top",
        never=("server", "tome_core", "torch", "timm", "numpy", "fastapi", "starlette", "uvicorn"),
        allowed=("server.top", "server.errors"),
    ),
    Rule("server.top.frame", never=("time", "rich", "http")),
    Rule("tome_client", never=("server", "tome_core", "torch", "timm", "fastapi", "starlette", "pydantic")),
    # Leaves.
    Rule("server.errors", never=("server", "tome_core", "torch", "fastapi", "starlette")),
    Rule(
        "server.messages",
        never=("server", "tome_core", "torch", "fastapi", "starlette"),
        allowed=("tome_core.schedule", "tome_core.cost", "server.errors", "server.costs"),
    ),
    # Prices: the same pure functions in both processes.
    Rule(
        "server.costs",
        never=("server", "tome_core", "torch", "time", "fastapi", "starlette"),
        allowed=("tome_core.schedule", "tome_core.cost"),
    ),
    Rule("server.picture", never=("server", "tome_core", "torch", "fastapi", "starlette")),
    Rule(
        "server.settings",
        never=("server", "torch", "fastapi", "starlette"),
        allowed=("server.errors", "server.hardware"),
    ),
    Rule("server.hardware", never=("server", "tome_core", "torch", "fastapi", "starlette")),
    Rule("server.metrics", never=("server", "torch"), allowed=("server.errors", "server.messages", "server.pulse")),
    Rule("server.pulse", never=("server", "tome_core", "torch", "fastapi", "starlette")),
    Rule(
        "server.waiting",
        never=("server", "tome_core", "torch", "time", "fastapi", "starlette"),
        allowed=("server.costs",),
    ),
    Rule("server.keys", never=("server", "tome_core", "torch", "fastapi", "starlette"), allowed=("server.errors",)),
]


@dataclass(frozen=True)
class Import:
    """One import of ``target``; ``late`` where it stands in a function."""

    target: str
    line: int
    late: bool


def below(name: str, tops: tuple[str, ...]) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in tops)


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in {getattr(test, "id", None), getattr(test, "attr", None)}


def _statements(body: list[ast.stmt], late: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All imports but those for type checkers, at any depth."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, late
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from _statements(node.orelse, late)
        else:
            inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ("body", "orelse", "finalbody", "handlers", "cases"):
                parts = getattr(node, child, [])
                for part in parts if isinstance(parts, list) else []:
                    nested = [part] if isinstance(part, ast.stmt) else part.body
                    yield from _statements(nested, inside)


@cache
def imports(name: str) -> tuple[Import, ...]:
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node, late in _statements(ast.parse(path.read_text()).body, late=False):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            # "from a import b" imports a.b where that is a module, else a name of a.
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names]
        found += [Import(target, node.lineno, late) for target in targets]
    return tuple(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.where}-{'-'.join(rule.never)}")
def test_arrows(rule: Rule) -> None:
    wrong = [
        f"{modules()[name].relative_to(ROOT)}:{found.line} imports {found.target}"
        for name in modules()
        if below(name, (rule.where,)) and not below(name, rule.exempt)
        for found in imports(name)
        if below(found.target, rule.never) and not below(found.target, rule.allowed)
    ]
    assert not wrong


def test_only_patch_imports_adapters_and_only_when_called() -> None:
    early = [found for found in imports("tome_core.patching") if not found.late]
    assert not [found for found in early if below(found.target, ("tome_core.adapters", "timm"))]


def test_the_schedule_needs_the_standard_library_only() -> None:
    assert {found.target.split(".")[0] for found in imports("tome_core.schedule")} <= sys.stdlib_module_names


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycles(package: str) -> None:
    arrows = {
        name: sorted({found.target for found in imports(name) if not found.late and found.target in modules()} - {name})
        for name in modules()
        if below(name, (package,))
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in arrows.get(name, []):
                visit(target, (*path, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short_enough_to_read(package: str) -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items() if below(name, (package,))}
    assert lengths
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def test_the_api_process_never_imports_torch() -> None:
    code = "import server.api.serving, server.cli, sys; sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
