"""Rounds over HTTP as Markdown: throughput, latency, ratios to the peer and to the bound."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.parts import Parts
from benchmarks.wrk import Load

PEER = "peer"


@dataclass
class Rounds:
    """Results of each round, by load: `level_name`, ``mixed`` and `alone_name`.

    Attributes:
        levels: the values of r that ours was measured at; ``mixed`` takes them in turn.
        cores: that decode beside the forward pass.
    """

    levels: tuple[int, ...]
    cores: int
    about: dict[str, str]
    ours: list[dict[str, Load]] = field(default_factory=list)
    peer: list[dict[str, Load]] = field(default_factory=list)
    parts: list[Parts] = field(default_factory=list)


def level_name(r: int) -> str:
    """The name of a load at one r."""
    return f"r={r}"


def alone_name(name: str) -> str:
    """The name of load ``name`` on a single connection."""
    return f"{name}, one connection"


def median(rounds: Sequence[dict[str, Load]], name: str) -> Load:
    """The load of that name, each number the median over the rounds."""
    loads = [asdict(loads[name]) for loads in rounds]
    return Load(**{key: statistics.median(load[key] for load in loads) for key in loads[0]})


def bound(rounds: Rounds, levels: Sequence[int]) -> float:
    """Images/s that decoding and forward pass allow, when images take ``levels`` in turn."""
    return statistics.median(parts.bound(levels, rounds.cores) for parts in rounds.parts)


def mixed_ratio(rounds: Rounds) -> float:
    """Throughput of mixed r by the harmonic mean of its values' own throughputs."""
    alone = [median(rounds.ours, level_name(r)).images_per_s for r in rounds.levels]
    return median(rounds.ours, "mixed").images_per_s / statistics.harmonic_mean(alone)


def http_seconds(rounds: Rounds, r: int) -> float:
    """Time of a request on one connection beyond decoding and forward pass of its image alone."""
    parts = statistics.median(parts.decode + parts.single[r] for parts in rounds.parts)
    return median(rounds.ours, alone_name(level_name(r))).p50 - parts


def http_seconds_beside(rounds: Rounds, r: int) -> float:
    """Mean time beyond the decoding and forward pass that the server timed in the same requests."""
    loads = [loads[alone_name(level_name(r))] for loads in rounds.ours]
    return statistics.median(1 / load.images_per_s - load.stages for load in loads)


def markdown(rounds: Rounds) -> str:
    """The whole report."""
    parts = [
        "# Speed over HTTP",
        "\n".join([*_header(bool(rounds.peer)), *_lines(rounds)]),
        *_sentences(rounds),
    ]
    parts += [
        "## Measured on",
        "\n".join(f"* {key}: {value}" for key, value in rounds.about.items()),
    ]
    return "\n\n".join(parts) + "\n"


def write_json(rounds: Rounds, path: Path) -> None:
    """Every round."""
    path.write_text(json.dumps(asdict(rounds), indent=1) + "\n", "utf-8")


def _header(has_peer: bool) -> Iterator[str]:
    cells = [
        "load",
        "images/s",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "of the bound",
        *(["of the peer"] if has_peer else []),
    ]
    yield _line(cells)
    yield _line(["---"] * len(cells))


def _lines(rounds: Rounds) -> Iterator[str]:
    levels: dict[str, Sequence[int]] = {level_name(r): (r,) for r in rounds.levels} | {
        "mixed": rounds.levels
    }
    for name in rounds.ours[0]:
        load = median(rounds.ours, name)
        cells = [name, *_numbers(load)]
        allowed = bound(rounds, levels[name]) if name in levels else None
        cells.append(f"{load.images_per_s / allowed:.2f} of {allowed:.1f}" if allowed else "")
        if rounds.peer:
            peer = median(rounds.peer, PEER if name in levels else alone_name(PEER)).images_per_s
            cells.append(f"{load.images_per_s / peer:.2f}x of {peer:.1f}")
        yield _line(cells)
    for name in rounds.peer[0] if rounds.peer else ():
        yield _line([name, *_numbers(median(rounds.peer, name)), "", ""])


def _numbers(load: Load) -> list[str]:
    return [
        f"{load.images_per_s:.1f}",
        *(f"{1000 * seconds:.1f}" for seconds in (load.p50, load.p90, load.p99)),
    ]


def _sentences(rounds: Rounds) -> Iterator[str]:
    decode = statistics.median(parts.decode for parts in rounds.parts)
    images = rounds.parts[0].images
    yield (
        f"Medians of {len(rounds.ours)} rounds. The bound is 1 / (forward seconds of an image in"
        f" batches of {images} + decode seconds / {rounds.cores}); decoding takes"
        f" {1000 * decode:.2f} ms."
    )
    values = ", ".join(map(str, rounds.levels))
    yield (
        f"Mixed r = {values}: {mixed_ratio(rounds):.2f} of the harmonic mean of the loads of one r."
    )
    for r in rounds.levels:
        if alone_name(level_name(r)) in rounds.ours[0]:
            alone = 1000 * http_seconds(rounds, r)
            beside = 1000 * http_seconds_beside(rounds, r)
            yield (
                f"On one connection at r={r}, HTTP adds {beside:.1f} ms to what the server took for"
                f" decoding and the forward pass in the same requests, and {alone:.1f} ms to what"
                " these take alone, at another time."
            )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
