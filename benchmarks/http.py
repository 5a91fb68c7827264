"""`make bench-http`: images/s and latency over HTTP, against a peer and the parts' bound.

Every round starts our server with random weights, measures it, ends it, times its forward pass and
its decoding alone, and does the same with the peer. With ``--tome`` that is LitServe with the
published ToMe code at r=16; else it may be any server that takes a JPEG by POST:

    python -m benchmarks.http --peer "python app.py" --peer-url http://127.0.0.1:8901/predict
    --peer-form file
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import servers
from benchmarks.checkpoints import write_random_model
from benchmarks.contenders import Published
from benchmarks.http_report import PEER, Rounds, alone_name, level_name, markdown, write_json
from benchmarks.parts import measure_parts
from benchmarks.results import about
from benchmarks.wrk import Body, FailedRequests, Load, bare, drive, form
from server.engine.device.placement import pick_device
from server.hardware import usable_cores
from tome_load.pictures import generate_jpeg
from tome_top.scrape import NoMetrics, Scrape, scrape

LEVELS = (0, 4, 8, 12, 16)
ALONE = (0, 16)
PORT = 8127
PEER_PORT = 8901
BATCH = 32
WARM_SECONDS = 2.0


class Bench:
    """One picture on disk, and the loads that are driven with it."""

    def __init__(self, args: argparse.Namespace, folder: Path, console: Console) -> None:
        self.args = args
        self.console = console
        self.folder = folder
        self.config = write_random_model(args.model, folder)
        self.image = generate_jpeg()
        self.picture = folder / "picture.jpg"
        self.picture.write_bytes(self.image)

    def ours(self) -> dict[str, Load]:
        """Our server at every r, mixed, and on one connection."""
        args = self.args
        with servers.ours(
            self.config, PORT, threads=args.threads, max_batch=BATCH, dtype=args.dtype
        ) as address:
            urls = {level_name(r): [f"{address}/classify?r={r}"] for r in LEVELS}
            urls["mixed"] = [url for alone in urls.values() for url in alone]
            found = {
                name: self.load(f"ours, {name}", several, bare(self.image))
                for name, several in urls.items()
            }
            for name in map(level_name, ALONE):
                found[alone_name(name)] = self.alone(
                    f"ours, {alone_name(name)}", address, urls[name]
                )
        return found

    def alone(self, name: str, address: str, urls: Sequence[str]) -> Load:
        """Drive our server at ``address`` on one connection; returns its stage timings too."""
        before = scrape(address)
        found = self.load(name, urls, bare(self.image), alone=True)
        return replace(found, stages=stage_seconds(before, scrape(address)))

    def peer(self) -> dict[str, Load]:
        """The peer, under the same load."""
        body = form(self.image, self.args.peer_form) if self.args.peer_form else bare(self.image)
        with servers.other(
            self.args.peer, self.args.peer_url, body, self.args.out / "peer.log"
        ) as url:
            return {
                PEER: self.load(PEER, [url], body),
                alone_name(PEER): self.load(alone_name(PEER), [url], body, alone=True),
            }

    def load(self, name: str, urls: Sequence[str], body: Body, alone: bool = False) -> Load:
        """Drive one load, after a short one that does not count."""
        file = self.folder / "body"
        file.write_bytes(body.content)
        connections = 1 if alone else self.args.connections
        with suppress(
            FailedRequests
        ):  # a slow server may not finish a first batch in so short a time
            drive(urls, file, body.content_type, connections, WARM_SECONDS)
        found = drive(urls, file, body.content_type, connections, self.args.seconds)
        self.console.print(
            f"{name}: {found.images_per_s:.1f} images/s, p50 {1000 * found.p50:.1f} ms", style="dim"
        )
        return found


def stage_seconds(before: Scrape, after: Scrape) -> float:
    """Mean seconds of decoding and forward pass between two readings, in batches of one."""
    seconds = requests = 0.0
    for reading, sign in ((after, 1), (before, -1)):
        sums, counts = (
            reading.by(f"tome_stage_duration_seconds_{kind}", "stage") for kind in ("sum", "count")
        )
        seconds += sign * (sums["decode"] + sums["forward"])
        requests += sign * counts["decode"]
    return seconds / requests


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print. Returns the exit code."""
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else 160)
    if shutil.which("wrk") is None:
        console.print("error: wrk is not installed; Debian's package wrk has it", style="red")
        return 2
    has_peer = args.peer is not None and args.peer_url is not None
    if not has_peer:
        console.print(
            "peer is skipped: --tome has LitServe run a checkout of"
            " github.com/facebookresearch/ToMe;"
        )
        console.print("or name its command with --peer, and where it takes a POST with --peer-url")
    cores = usable_cores()
    rounds = Rounds(
        LEVELS, cores, about("benchmarks.http", pick_device("auto"), args.threads or cores)
    )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(args, Path(folder), console)
            for number in range(args.rounds):
                console.print(f"round {number + 1} of {args.rounds}", style="dim")
                rounds.ours.append(bench.ours())
                rounds.parts.append(
                    measure_parts(
                        bench.config, bench.picture, LEVELS, BATCH, args.threads, args.dtype
                    )
                )
                if has_peer:
                    rounds.peer.append(bench.peer())
    except (FailedRequests, servers.NotReady, NoMetrics, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    write_json(rounds, args.out / "http.json")
    report = markdown(rounds)
    (args.out / "http.md").write_text(report, "utf-8")
    console.print(Markdown(report))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="vit_small_patch16_224", help="timm name")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of our engine; default: all cores")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument(
        "--tome",
        type=Path,
        metavar="PATH",
        help="LitServe runs this checkout of the published ToMe code as peer",
    )
    parser.add_argument("--peer", metavar="COMMAND", help="starts the server to compare with")
    parser.add_argument("--peer-url", metavar="URL", help="where it takes a POST")
    parser.add_argument(
        "--peer-form", metavar="NAME", help="send the image as this file of a form, not as the body"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder for what is written"
    )
    args = parser.parse_args(arguments)
    if args.tome is not None:
        if args.peer is not None or args.peer_url is not None:
            parser.error("--tome and --peer name two peers; only one is measured")
        if why := Published(args.tome).missing(pick_device("cpu")):
            parser.error(why)
        if find_spec("litserve") is None:
            parser.error(
                "LitServe is missing; `pip install --constraint constraints.txt --group bench`"
                " brings it"
            )
        args.peer = litserve(args)
        args.peer_url = f"http://127.0.0.1:{PEER_PORT}/predict"
        args.peer_form = "file"
    return args


def litserve(args: argparse.Namespace) -> str:
    """The command of LitServe with the published code, with our dtype and thread count."""
    module = [sys.executable, "-W", "ignore", "-m", "benchmarks.litserve_peer"]
    options = [
        "--tome",
        args.tome,
        "--model",
        args.model,
        "--dtype",
        args.dtype,
        "--port",
        PEER_PORT,
    ]
    threads = args.threads or usable_cores()
    return shlex.join([*module, *map(str, options), "--threads", str(threads)])


if __name__ == "__main__":
    raise SystemExit(main())
