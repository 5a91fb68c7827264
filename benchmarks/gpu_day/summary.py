"""The compact tables at the end, since the end of a long output may be all that is kept.

``python -m benchmarks.gpu_day.summary FOLDER`` makes them again, of a day that was broken off, say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.day import Row, read

LIMIT = 11_700  # characters
COLUMNS = (
    ("timm cudnn", "0"),
    ("timm", "0"),
    ("timm graph", "0"),
    *(("published", r) for r in ("0", "8", "16")),
    *(("ours", r) for r in ("0", "8", "16", "mixed")),
    *(("ours graph", r) for r in ("0", "8", "16", "mixed")),
    *(("operators", r) for r in ("0", "8", "16", "mixed")),
    *(("operators graph", r) for r in ("0", "8", "16")),
)
SHORT = {
    "timm cudnn": "tcud",
    "timm": "timm",
    "timm graph": "tgra",
    "published": "pub",
    "ours": "our",
    "ours graph": "gra",
    "operators": "op",
    "operators graph": "og",
}


def summarise(rows: Sequence[Row], short: bool = False) -> str:
    """All tables, most important last; ``short`` truncates them to `LIMIT` characters."""
    parts = {name: title(rows, name, make) for name, make, _ in TABLES if of(rows, name)}
    if short:
        shares = {name: share for name, _, share in TABLES}
        limits = share_out(LIMIT, {name: (len(part), shares[name]) for name, part in parts.items()})
        parts = {name: cut(part, limits[name]) for name, part in parts.items()}
    return "\n\n".join(parts.values())


def share_out(limit: int, wanted: dict[str, tuple[int, float]]) -> dict[str, int]:
    """Divide ``limit`` by shares among the wanted lengths; what one does not need, others get.

    Args:
        wanted: how much, and the share.
    """
    waiting = dict(wanted)
    given = dict[str, int]()
    while True:
        unit = (limit - sum(given.values())) / (sum(share for _, share in waiting.values()) or 1.0)
        content = {
            name: much for name, (much, share) in waiting.items() if much + 8 <= unit * share
        }
        if not content:
            return given | {name: int(unit * share) for name, (_, share) in waiting.items()}
        for name, much in content.items():
            given[name] = much + 8  # what marks the end of one that was cut
            del waiting[name]


def cut(part: str, limit: int) -> str:
    """As many whole lines of ``part`` as fit, and that there are more."""
    lines = part.split("\n")
    while sum(map(len, lines)) + len(lines) > limit - 6 and len(lines) > 1:
        lines.pop()
    more = "" if len(lines) == part.count("\n") + 1 else "\n..."
    return "\n".join(lines)[:limit] + more


def of(rows: Sequence[Row], step: str) -> list[Row]:
    """The rows of a step."""
    return [row for row in rows if row["step"] == step]


def title(rows: Sequence[Row], step: str, make: Callable[[list[Row]], list[str]]) -> str:
    """A step's table under its name, its errors first."""
    mine = of(rows, step)
    try:
        lines = make(mine)
    except Exception as error:  # a row that is not as expected must not cost the other tables
        lines = [f"no table: {type(error).__name__}: {error}"]
    if step == "tests":
        return "\n".join([f"== {step}", *lines])
    failed = [row for row in mine if row.get("error")]
    errors = [f"! {where(row)}: {str(row['error'])[:150]}" for row in failed[:5]]
    errors += [f"! and {len(failed) - 5} more errors"] if len(failed) > 5 else []
    without = [
        where(row).removeprefix("left out ") for row in mine if row.get("what") == "left out"
    ]
    errors += [f"! left out for lack of time: {', '.join(without)}"] if without else []
    return "\n".join([f"== {step}", *errors, *lines])


def where(row: Row) -> str:
    """What a row is of."""
    names: tuple[str, ...] = (
        "what",
        "kernel",
        "shape",
        "name",
        "model",
        "dtype",
        "load",
        "decode_threads",
        "batch",
        "contender",
        "r",
    )
    names += ("connections", "recorded", "part")
    return " ".join(str(row[name]) for name in names if name in row)


def number(value: Any, digits: int = 3) -> str:
    """A number short enough for a table."""
    if not isinstance(value, int | float):
        return "-" if value is None else str(value)
    if abs(value) >= 100_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def device(rows: list[Row]) -> list[str]:
    """One line of names, one of numbers."""
    lines = []
    for what, names in (
        ("card", ("name", "gib", "multiprocessors", "driver", "cudnn")),
        ("versions", ("python", "torch", "cuda", "triton", "timm", "numpy", "pillow", "cpus")),
        ("compilers", ("cc", "nvcc")),
    ):
        for row in rows:
            if row.get("what") == what:
                lines.append(", ".join(f"{name} {number(row.get(name))}" for name in names))
    measured = [
        f"{row['what']} {number(row['value'])} {row['unit']}" for row in rows if "value" in row
    ]
    taken = [row["signature"] or "" for row in rows if "signature" in row]
    return [
        *lines,
        "; ".join(measured),
        *(f"varlen_attn{text.replace('torch.', '')}" for text in taken),
    ]


def tests(rows: list[Row]) -> list[str]:
    """How many passed, and why the others did not."""
    ended = {row["test"]: row for row in rows if "outcome" in row}
    begun = [row["test"] for row in rows if row.get("what") == "begun"]
    outcomes = [row["outcome"] for row in ended.values()]
    lines = [
        ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))
    ]
    failed = [row for row in ended.values() if row["outcome"] == "failed"]
    lines += [
        f"FAILED {row['test'].removeprefix('tests/cuda/')}: {row['error'][:170]}"
        for row in failed[:14]
    ]
    lines += [f"NO END {test}" for test in begun if test not in ended][:3]
    lines += [
        f"! {row['what']}: {row['error'][:150]}"
        for row in rows
        if row.get("error") and "test" not in row
    ]
    return lines


def proof(rows: list[Row]) -> list[str]:
    """A line for each start, then what it judged, and what it warned of."""
    lines = []
    for row in rows:
        if "kind" in row:
            parts = " ".join(
                f"{name} {number(seconds, 2)}" for name, seconds in row.get("parts_s", {}).items()
            )
            without = f" without {row['less']}" if row.get("less") else ""
            lines.append(
                f"{row['model']} {row['dtype']}{without}: {row['kind']}, start {row['start_s']:.1f}"
                f" s ({parts}), peak {number(row.get('peak_gb'), 2)} GB; speed-ups"
                f" {pairs(row.get('speedups'))}"
            )
        lines += [f"   {verdict(judged)}" for judged in row.get("judged", [])[:1]]
        lines += [
            f"   {verdict(judged)}" for judged in row.get("judged", [])[1:] if judged["reason"]
        ]
        lines += [
            f"   {line[:220]}"
            for line in row.get("log", [])
            if line.startswith(("WARNING", "ERROR"))
        ][:4]
    lines += [
        f"{row['model']} {row['dtype']} ms, predicted {pairs(row['batch_ms'])}; ran"
        f" {pairs(row['ran_ms'])}"
        for row in rows
        if row.get("dtype") == "bfloat16" and "batch_ms" in row
    ]
    return lines


def verdict(judged: dict[str, Any]) -> str:
    """One judgement: errors found, and what rounding alone makes."""
    found, noise = (sorted(judged[name]) or [0.0] for name in ("found", "noise"))
    return (
        f"median {found[len(found) // 2]:.2g} worst {found[-1]:.2g}; noise"
        f" {noise[len(noise) // 2]:.2g} {noise[-1]:.2g}; {judged['reason'] or 'right'}"
    )


def pairs(values: dict[str, Any] | None) -> str:
    """A few named numbers on a line."""
    return " ".join(f"{name}:{number(value)}" for name, value in (values or {}).items())


def forward(rows: list[Row]) -> list[str]:
    """images/s, a line for each model and batch."""
    found = {
        (row["model"], row["batch"], row["contender"], row["r"]): row
        for row in rows
        if "images_per_s" in row
    }
    heads = [f"{SHORT[contender]}{'mix' if r == 'mixed' else r}" for contender, r in COLUMNS]
    lines = ["images/s  " + "".join(f"{head:>7}" for head in heads)]
    for model, batch in dict.fromkeys(
        (row["model"], row["batch"]) for row in rows if row.get("what") == "case"
    ):
        cells = [found.get((model, batch, *column), {}).get("images_per_s") for column in COLUMNS]
        lines.append(f"{model:4} {batch:<5}" + "".join(f"{number(cell):>7}" for cell in cells))
    notes = [f"{where(row)}: {row['note']}" for row in rows if row.get("note")]
    memory = [
        f"{model} {batch} {contender}{r}: {number(row['peak_mb'])}"
        for (model, batch, contender, r), row in found.items()
        if batch == 256 and contender in ("timm cudnn", "published", "ours") and model == "B"
    ]
    return [*lines, *notes[:4], "MB of a call: " + ", ".join(memory)]


def profile(rows: list[Row]) -> list[str]:
    """A line for each case, its kinds, and the kernels that take most of two of them."""
    lines = []
    for index, row in enumerate(row for row in rows if "launches" in row):
        name = f"{row['model']} {row['batch']} r={row['r']}{' graph' if row['recorded'] else ''}"
        lines.append(
            f"{name}: {row['launches']:.0f} launches, device {row['device_ms']:.2f} ms, wall"
            f" {row['wall_ms']:.2f} ms, idle {number(row['idle_share'], 2)}"
        )
        kinds = row["kinds"].items()
        lines.append(
            "   us "
            + ", ".join(f"{kind} {one['us']:.0f} in {one['launches']:.0f}" for kind, one in kinds)
        )
        if index in (0, 3):
            lines += [
                f"   {one['us']:7.0f} us {one['launches']:4.0f}x {one['name'][:85]}"
                for one in row["kernels"][:8]
            ]
    return lines


def plain(name: str) -> str:
    """A kernel's name without what all have."""
    for words in ("void ", "at::native::", "(anonymous namespace)::", "at_cuda_detail::"):
        name = name.replace(words, "")
    return name[:66]


def server(rows: list[Row]) -> list[str]:
    """A line for each load."""
    lines = []
    for row in rows:
        if row.get("what") == "server" and "start_s" in row:
            lines.append(
                f"{row['name']}, decode threads {row['decode_threads']}: {row['kind']}, start"
                f" {row['start_s']:.1f} s, {pairs(row.get('speedups'))}"
            )
        elif row.get("what") == "log":
            lines += [f"   {line[:220]}" for line in row["lines"][-4:]]
        elif "images_per_s" in row:
            slow = max(row["metrics_s"]) > 0.5
            lines.append(
                f"{row['load']:6} r={row['r']:5} x{row['connections']:<3} threads"
                f" {row['decode_threads']:7} "
                f"{row['images_per_s']:6.0f}/s p50 {number(row['p50_ms'])} p99"
                f" {number(row['p99_ms'])} ms, "
                f"batch {number(row['batch_mean'])}, gpu {number(row['gpu_busy'], 2)} "
                f"fwd {number(row['forward_share'], 2)}, cpu {pairs(row['cpu'])}"
                f" clients:{row['clients_cpu']}"
                f"{' failed ' + pairs(row['failures']) if row['failures'] else ''}"
                f"{' metrics took s ' + str(row['metrics_s']) if slow else ''}"
            )
    return lines


def compiled(rows: list[Row]) -> list[str]:
    """A line for each batch size."""
    return [
        f"{row['model']} {row['batch']}: {number(row['images_per_s'])}/s, compiled in"
        f" {row['compile_s']:.0f} s"
        for row in rows
        if "images_per_s" in row
    ]


def kernels(rows: list[Row]) -> list[str]:
    """A line per workload: what is served, then the others' time as a multiple of it."""
    lines = [row["note"] for row in rows if row.get("what") == "interpreter"]
    for workload in dict.fromkeys((row["kernel"], row["shape"]) for row in rows if "kernel" in row):
        mine = [
            row for row in rows if (row.get("kernel"), row.get("shape")) == workload and "us" in row
        ]
        served = next((row for row in mine if row["name"] == "served"), None)
        if served is None:
            lines.append(f"{' '.join(workload)}: what is served did not run")
            continue
        rate = f"{number(served['tflop_per_s'])} TFLOP/s, " if served["tflop_per_s"] else ""
        others = [
            f"{row['name']} {row['us'] / served['us']:.2f}x{remarks(row)}"
            for row in mine
            if row is not served
        ]
        lines.append(
            f"{' '.join(workload)}: {number(served['us'])} us, {rate}{number(served['gb_per_s'])}"
            f" GB/s, host {number(served['host_us'])} us{remarks(served)}; {', '.join(others)}"
        )
    return lines


def remarks(row: Row) -> str:
    """What is wrong with what one of our variants gave, or with how it was timed."""
    words = [f"WRONG {number(row['deviation'])}"] if row.get("deviation", 0.0) > 1 else []
    words += ["other bits"] if row.get("same_bits") is False else []
    words += [] if row.get("recorded", True) else ["not recorded"]
    return f" ({', '.join(words)})" if words else ""


def steps(rows: list[Row]) -> list[str]:
    """How each step ended."""
    return [
        f"{row['name']}: {row['outcome']} in {row['seconds']} s, {row['errors']} errors"
        for row in rows
    ]


# With its share of a short summary.
TABLES: tuple[tuple[str, Callable[[list[Row]], list[str]], float], ...] = (
    ("device", device, 1.2),
    ("profile", profile, 2.6),
    ("proof", proof, 2.0),
    ("server", server, 2.2),
    ("compile", compiled, 0.4),
    ("kernels", kernels, 2.2),
    ("tests", tests, 1.4),
    ("forward", forward, 1.9),
    ("day", steps, 0.6),
)

if __name__ == "__main__":
    print(summarise(read(Path(sys.argv[1]))))
