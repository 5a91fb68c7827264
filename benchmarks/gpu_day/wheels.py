"""Which packages are missing or too old on a machine without network, and how to carry them.

Run it on that machine; or where everything is installed, with what that machine has:
``python -m benchmarks.gpu_day.wheels --present FREEZE``, a file as ``pip freeze`` prints it there.
Only so are the needs of a package known that is missing.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
GLIBC = ("2_28", "2_27", "2_17", "2014", "1")  # wheels for these run on any machine of today

Version = Callable[[str], str | None]


@dataclass(frozen=True)
class Wanted:
    """A package that has to be carried.

    Attributes:
        has: its version there; None where it is missing.
        needed: what pyproject.toml, or another package, asks for.
    """

    name: str
    has: str | None
    needed: str


def installed(name: str) -> str | None:
    """The version of a package here."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def missing(version: Version = installed) -> list[Wanted]:
    """What is missing or too old where packages have these versions, by name.

    Needs are followed through the packages that are installed here: those of others nobody knows.
    """
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    seen: set[str] = set()
    wanted: dict[str, Wanted] = {}
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen or not (
            requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ):
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        has = version(name)
        is_right = has is not None and requirement.specifier.contains(has, prereleases=True)
        if not is_right:
            wanted[name] = Wanted(name, has, str(requirement.specifier) or "any")
        # Of what is right on another machine the needs are there too; of what is carried, they are
        # those of the version that is installed here.
        if (
            (not is_right or version is installed)
            and name not in ("torch", "timm")
            and installed(name)
        ):
            waiting += [Requirement(text) for text in metadata.requires(name) or ()]
    return sorted(wanted.values(), key=lambda want: want.name)


def command(wants: list[Wanted], python: str, pinned: bool) -> str:
    """How pip downloads ``wants`` for a Linux machine with this ``python``."""
    # Old tags are as manylinux2014, newer ones as manylinux_2_28.
    tags = [f"_{one}" if "_" in one else one for one in GLIBC]
    platforms = " ".join(f"--platform manylinux{tag}_x86_64" for tag in tags)
    names = [
        f"{want.name}=={installed(want.name)}" if pinned and installed(want.name) else want.name
        for want in wants
    ]
    return (
        "python3 -m pip download --no-deps --only-binary=:all: --implementation cp"
        f" --python-version {python} {platforms} -d .whl {' '.join(names)}"
    )


def read_freeze(path: Path) -> Version:
    """Versions as in the output of ``pip freeze``."""
    lines = [line.split("==") for line in path.read_text("utf-8").splitlines() if "==" in line]
    versions = {canonicalize_name(name.strip()): version.strip() for name, version in lines}
    return lambda name: versions.get(canonicalize_name(name))


def main(arguments: list[str] | None = None) -> int:
    """Print what is wanted; 1 if anything is."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_day.wheels", description=__doc__
    )
    parser.add_argument(
        "--present", type=Path, metavar="FREEZE", help="what pip freeze prints on the other machine"
    )
    parser.add_argument(
        "--python",
        default=f"{sys.version_info.major}.{sys.version_info.minor}",
        help="version there",
    )
    args = parser.parse_args(arguments)
    wants = missing(read_freeze(args.present) if args.present else installed)
    if not wants:
        print("nothing is missing")
        return 0
    for want in wants:
        print(
            f"{want.name}: needed {want.needed},"
            f" {f'there is {want.has}' if want.has else 'missing'}"
        )
    print(
        "\nwhere there is a network, with pip:\n"
        + command(wants, args.python, pinned=args.present is not None)
    )
    print(
        "\nwhere there is none:\n"
        "python3 -m pip install --no-index --no-deps --target site .whl/*.whl; "
        "export PYTHONPATH=$PWD/site"
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
