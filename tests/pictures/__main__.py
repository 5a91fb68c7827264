"""Compare server, commands, and timm with Pillow: `python -m tests.pictures`.

Generates pictures of every kind, and damaged ones for the detection of formats. Prints how many of
each format agree, and where Pillow alone shows something else; ends with 1 if any does not agree.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.pictures.compare import differences, pillow_agrees
from tests.pictures.generate import Picture, pictures
from tests.pictures.scanner import damaged, unexplained
from tests.pictures.serving import (
    BundledModel,
    are_near,
    best_by_command,
    best_by_server,
    features_by_server,
)
from tests.server.conftest import run_server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="pictures")
    parser.add_argument("--damaged", type=int, default=20_000, help="damaged files")
    parser.add_argument("--commands", type=int, default=5, help="runs of `tome-serve classify`")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failures = compare_pictures(arguments.count, arguments.seed, arguments.commands)
    files = damaged(arguments.damaged, arguments.seed)
    for body in track(files, "damaged files", total=arguments.damaged):
        if reason := unexplained(body):
            failures.append(f"Pillow opens what is refused with {reason}: {body[:40].hex()}...")
    console = Console()
    console.print(
        f"{arguments.damaged:,} damaged files: decoded wherever Pillow does, or refused by rule"
    )
    for failure in failures:
        console.print(failure, markup=False)
    return 1 if failures else 0


def compare_pictures(count: int, seed: int, commands: int) -> list[str]:
    """Print what agrees, and return what does not."""
    failures: list[str] = []
    seen: Counter[str] = Counter()
    deviations: Counter[str] = Counter()
    model = BundledModel()
    with run_server() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for index, picture in enumerate(track(pictures(count, seed), "pictures", total=count)):
            seen[picture.name.split()[0]] += 1
            failures += differences(picture)
            failures += served_differences(model, client, picture)
            if not pillow_agrees(picture):
                deviations[picture.pillow_differs or f"unexplained: {picture.name}"] += 1
            if commands and index % max(count // commands, 1) == 0:
                failures += command_differences(client, picture)
    failures += [reason for reason in deviations if reason.startswith("unexplained")]
    print_counts("format", "pictures", seen)
    print_counts("where Pillow alone shows something else", "pictures", deviations)
    return failures


def served_differences(model: BundledModel, client: httpx.Client, picture: Picture) -> list[str]:
    """Return how server and commands differ from what the picture shows."""
    expected = model.features(picture)
    found = []
    if not are_near(features_by_server(client, picture), expected):
        found.append(f"{picture.name}: the server differs")
    if not are_near(model.features_by_command(picture), expected):
        found.append(f"{picture.name}: the command differs")
    return found


def command_differences(client: httpx.Client, picture: Picture) -> list[str]:
    """Return whether ``tome-serve classify``, in a process of its own, and the server differ."""
    if best_by_command(picture.body) == best_by_server(client, picture.body):
        return []
    return [f"{picture.name}: classify prints another class than the server"]


def print_counts(name: str, counted: str, counts: Counter[str]) -> None:
    table = Table(name, counted)
    for key, count in sorted(counts.items()):
        table.add_row(key, f"{count:,}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
