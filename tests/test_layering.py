"""The arrows between folders, checked on the source: no rule needs anything to be imported."""

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
PACKAGES = ("tome_core", "server", "tome_client", "tome_load", "tome_top")
MAX_LINES = 400
MAX_LOOSE_MODULES = 8  # of the server, outside its folders


# Lowest first. A folder, or a module that lies loose in its package, imports only from itself and
# from layers below its own; those of one layer do not know each other.
LAYERS = (
    # The core: plain operations, then the packed buffer, then how both are executed, then models.
    ("tome_core.errors", "tome_core.split", "tome_core.rules", "tome_core.attention"),
    ("tome_core.schedule", "tome_core.cost"),
    ("tome_core.pooling", "tome_core.positional", "tome_core.rotary", "tome_core.relative"),
    ("tome_core.outputs", "tome_core.pixels", "tome_core.matching", "tome_core.networks"),
    ("tome_core.merge", "tome_core.pairs"),
    ("tome_core.metric",),
    ("tome_core.merging",),
    ("tome_core.ragged",),
    ("tome_core.residuals",),
    ("tome_core.dense", "tome_core.trace", "tome_core.execution", "tome_core.backends"),
    ("tome_core.backends.cpu", "tome_core.backends.cuda"),
    ("tome_core.block",),
    ("tome_core.model",),
    ("tome_core.adapters",),
    ("tome_core.patching", "tome_core.optimizing"),
    ("tome_core",),
    # The server: what both processes share,
    (
        "server.errors",
        "server.hardware",
        "server.logs",
        "server.allocator",
        "server.media",
    ),
    ("server.system", "server.api_keys", "server.latency", "server.imaging", "server.audio"),
    ("server.video",),
    ("server.decoding",),
    ("server.settings", "server.catalog"),
    ("server.ipc",),
    ("server.metrics",),
    # the engine process,
    ("server.engine.scheduling", "server.engine.device"),
    ("server.engine.loading",),
    ("server.engine.execution",),
    ("server.engine",),
    # the API process,
    ("server.engine_client", "server.api.contract"),
    ("server.api.middleware", "server.api.transport"),
    ("server.api.pipeline",),
    ("server.api.routes",),
    ("server.api.routes.oip", "server.api.routes.openai"),
    ("server.api",),
    # and what starts them, or sends requests to them.
    ("server.supervision",),
    ("server.asgi", "tome_load", "tome_top"),
    ("server.commands",),
    ("server", "server.__main__"),
    ("tome_client",),
)

# Of the core, the API process needs what is pure Python, to parse and to price a request.
PURE_CORE = ("tome_core.split", "tome_core.schedule", "tome_core.cost", "tome_core.rules")
API_PROCESS = (
    "server.supervision",
    "server.metrics",
    "server.engine_client",
    "server.api",
    "server.asgi",
    "server.ipc",
    "server.latency",
    "server.media",
    "server.imaging",
    "server.audio",
    "server.video",
    "server.decoding",
    "server.catalog",
    "server.settings",
)
# Of the server, its clients need what knows nothing else of it.
LEAVES = (
    "server.errors",
    "server.api_keys",
    "server.system",
    "server.media.files",
    "server.media.modality",
)
WEB = ("fastapi", "starlette", "uvicorn")
# Of the metrics, what exports them.
EXPORTING = ("server.metrics.api", "server.metrics.collector")
CLOCK = ("time", "asyncio", "subprocess")


@dataclass(frozen=True)
class Rule:
    """Modules at or below ``where`` (less ``exempt``) import nothing at or below ``never``.

    Except what is at or below ``allowed``.
    """

    where: str
    never: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()


RULES = [
    # timm and Triton are not there on every machine, and torch takes seconds to import.
    Rule("tome_core", never=("timm",), exempt=("tome_core.adapters", "tome_core.networks")),
    Rule("tome_core", never=("triton",), exempt=("tome_core.backends.cuda",)),
    *(Rule(module, ("torch", "numpy", "tome_core"), PURE_CORE) for module in PURE_CORE),
    Rule("tome_core", never=("server", *WEB)),
    # The two processes know each other's messages, and no more.
    *(Rule(folder, never=("torch", "timm", "server.engine")) for folder in API_PROCESS),
    *(Rule(folder, never=("tome_core",), allowed=PURE_CORE) for folder in API_PROCESS),
    Rule("server.engine", never=("server.api", "server.engine_client", *WEB)),
    # Engines and the parent process only count; API processes export.
    Rule("server.metrics", never=("prometheus_client", *EXPORTING), exempt=EXPORTING),
    Rule("server.engine", never=("prometheus_client", *EXPORTING)),
    # Policies are pure: they are tested without torch, processes or a clock.
    Rule("server.engine.scheduling", never=("torch", "timm", *CLOCK)),
    Rule("server.latency", never=("torch", *CLOCK)),
    Rule("server.supervision.health", never=CLOCK),
    # The parent is small, and does no HTTP.
    Rule("server.supervision", never=("server.api", "prometheus_client", *EXPORTING, *WEB)),
    Rule("tome_load.arrivals", never=CLOCK),
    Rule("tome_top.frame", never=("rich", "http", *CLOCK)),
    # Clients share the machine with the server that they measure, and none of its heavy parts.
    *(
        Rule(
            client,
            never=("torch", "timm", "numpy", "tome_core", "server", *WEB),
            allowed=(*PURE_CORE, *LEAVES),
        )
        for client in ("tome_load", "tome_top")
    ),
    Rule("tome_client", never=("server", "tome_core", "torch", "timm", "pydantic", *WEB)),
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


def _statements(
    body: list[ast.stmt], late: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
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
            targets = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base
                for alias in node.names
            ]
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


def layer_of(name: str) -> int:
    """The index of the layer with the longest name that ``name`` is, or lies below."""
    found = {
        unit: index for index, layer in enumerate(LAYERS) for unit in layer if below(name, (unit,))
    }
    return found[max(found, key=len)]


def unit_of(name: str) -> str:
    return max((unit for unit in LAYERS[layer_of(name)] if below(name, (unit,))), key=len)


def test_imports_go_down() -> None:
    wrong = [
        f"{modules()[name].relative_to(ROOT)}:{found.line} imports {found.target}"
        for name in modules()
        for found in imports(name)
        if found.target in modules()
        and unit_of(found.target) != unit_of(name)
        and layer_of(found.target) >= layer_of(name)
    ]
    assert not wrong


def test_few_modules_of_the_server_lie_outside_its_folders() -> None:
    loose = {path.stem for path in (ROOT / "server").glob("*.py")} - {"__init__", "__main__"}
    assert len(loose) <= MAX_LOOSE_MODULES, sorted(loose)


def test_only_patch_imports_adapters_and_only_when_called() -> None:
    early = [found for found in imports("tome_core.patching") if not found.late]
    assert not [found for found in early if below(found.target, ("tome_core.adapters", "timm"))]


@pytest.mark.parametrize("module", PURE_CORE)
def test_the_pure_core_needs_the_standard_library_only(module: str) -> None:
    packages = {found.target.split(".")[0] for found in imports(module)}
    assert packages - {"tome_core"} <= sys.stdlib_module_names


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycles(package: str) -> None:
    arrows = {
        name: sorted(
            {
                found.target
                for found in imports(name)
                if not found.late and found.target in modules()
            }
            - {name}
        )
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
    lengths = {
        name: len(path.read_text().splitlines())
        for name, path in modules().items()
        if below(name, (package,))
    }
    assert lengths
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def test_the_api_process_never_imports_torch() -> None:
    code = (
        "import server.api.lifecycle, server.supervision.lifecycle, sys;"
        " sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
