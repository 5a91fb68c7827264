"""Runs the tests with another version of Python: ``python -m tests.other_python 3.12 [ARGUMENTS]``.

Sets up ``.venv-python3.12`` with the exact versions of constraints.txt, which downloads gigabytes
the first time. Needs no package itself, and any Python from 3.9 on.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("pyproject.toml", "constraints.txt", "setup.py")
PRINT_VERSION = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
PRINT_VERSIONS = (
    "import platform, torch, timm;"
    " print('Python', platform.python_version() + ', torch', torch.__version__ + ', timm',"
    " timm.__version__)"
)


def find_interpreter(version: str) -> Path | None:
    """The newest interpreter of ``version``, such as 3.12 or 3.12.1, on the path or of pyenv."""
    wanted = numbers(version)
    found: dict[tuple[int, ...], Path] = {}
    for candidate in candidates(version):
        actual = version_of(candidate)
        if actual[: len(wanted)] == wanted:
            found.setdefault(actual, candidate)
    return found[max(found)] if found else None


def candidates(version: str) -> Iterator[Path]:
    minor = ".".join(version.split(".")[:2])
    on_path = shutil.which(f"python{minor}")
    if on_path:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{minor}.*/bin/python"))


def version_of(interpreter: Path) -> tuple[int, ...]:
    """Its version; empty if it does not run, as pyenv's commands for versions not chosen."""
    command = [str(interpreter), "-c", PRINT_VERSION]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return numbers(result.stdout.strip())


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def set_up(version: str, interpreter: Path) -> Path:
    """The Python of a virtual environment in which everything is installed."""
    folder = ROOT / f".venv-python{version}"
    python = folder / "bin" / "python"
    installed = folder / "installed"
    content = b"".join((ROOT / name).read_bytes() for name in INPUTS)
    digest = hashlib.sha256(content + str(interpreter).encode()).hexdigest()
    if installed.exists() and installed.read_text() == digest:
        return python
    sys.stderr.write(f"setting up {folder.name} with {interpreter}; this downloads torch\n")
    subprocess.run([str(interpreter), "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--upgrade", "pip>=25.1"], check=True)
    versions = ["--constraint", "constraints.txt", "--group", "dev", "--editable", "."]
    subprocess.run([*install, *versions], check=True, cwd=ROOT)
    installed.write_text(digest)
    return python


def main(arguments: list[str]) -> int:
    """Run the tests, and return the exit code of pytest. Raises `SystemExit`: what is missing."""
    if not arguments or not re.fullmatch(r"\d+\.\d+(\.\d+)?", arguments[0]):
        raise SystemExit("name a version of Python: make test-python PYTHON=3.12")
    version, *options = arguments
    interpreter = find_interpreter(version)
    if interpreter is None:
        raise SystemExit(
            f"there is no python{version} on the path or under pyenv (`pyenv versions`);"
            f" install one, as by `pyenv install {version}`"
        )
    try:
        python = str(set_up(version, interpreter))
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(error.cmd)} failed") from None
    result = subprocess.run([python, "-m", "pytest", *options], cwd=ROOT)
    subprocess.run([python, "-W", "ignore", "-c", PRINT_VERSIONS], check=True)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
