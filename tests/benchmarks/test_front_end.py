"""What `python -m benchmarks.front_end` sends, counts and reports; the load itself is wrk's."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.front_end import __main__ as command_line
from benchmarks.front_end import contenders, echo
from benchmarks.front_end.__main__ import main, parse, plan
from benchmarks.front_end.bodies import BODIES, SIZE, TENSOR_IMAGES
from benchmarks.front_end.cpu_time import (
    API_MAIN,
    API_OTHER,
    ENGINES,
    KINDS,
    OTHER,
    PARENT,
    Process,
    seconds_by_kind,
    snapshot,
    total_seconds,
)
from benchmarks.front_end.measure import pinned
from benchmarks.front_end.report import Run, markdown, rows
from benchmarks.front_end.tiny_network import Classifier, as_pixels, decode
from server.api.pipeline.multipart import FileParts
from server.api.routes.oip.requests import parse_infer_request
from server.catalog.entries import read_catalog
from server.ipc.messages import ModelInfo
from server.media.transforms import ImageTransform

# A main thread and another one use CPU; then a child of a session of its own starts.
BUSY = """
import subprocess, sys, threading, time
def burn(seconds):
    while time.thread_time() < seconds: pass
thread = threading.Thread(target=burn, args=(0.2,))
thread.start()
burn(0.1)
thread.join()
child = "import time\\nwhile time.process_time() < 0.3: pass\\nprint(1, flush=True); input()"
subprocess.run([sys.executable, "-c", child, "server." + "engine"], start_new_session=True)
"""


class TestBodies:
    @pytest.mark.parametrize(
        ("name", "size", "kilobytes"),
        [("noise", (224, 224), 38), ("photograph", (500, 375), 48), ("small", (28, 28), 0.8)],
    )
    def test_pictures(self, name: str, size: tuple[int, int], kilobytes: float) -> None:
        content = BODIES[name]()
        assert Image.open(io.BytesIO(content.data)).size == size
        assert len(content.data) == pytest.approx(1000 * kilobytes, rel=0.1)
        assert content == BODIES[name]()
        form = content.form()
        parts = FileParts(form.content_type)
        parts.feed(form.content)
        assert parts.finish() == [content.data]

    def test_an_inference_request_has_the_pixels(self) -> None:
        content = BODIES["tensor"]()
        body = content.infer_request()
        transform = ImageTransform((3, SIZE, SIZE), "bicubic", 1.0, "squash")
        model = ModelInfo(
            name="tiny",
            architecture="vit",
            transform=transform,
            labels=tuple("0123456789"),
            tokens=197,
            prefix=1,
            depth=1,
            device="cpu",
            dtype="float32",
            levels=(),
            grid=(14, 14),
        )
        length = dict(body.headers)["Inference-Header-Content-Length"]
        parsed = parse_infer_request(body.content, length, model, "0", 0.0)
        assert len(parsed.images) == TENSOR_IMAGES
        pixels = np.concatenate([np.asarray(image).ravel() for image in parsed.images])
        assert pixels.tobytes() == content.data


class TestPeers:
    def test_a_picture_is_resized_to_the_input(self) -> None:
        for name in ("noise", "photograph", "small"):
            assert decode(BODIES[name]().data).shape == (1, 3, SIZE, SIZE)

    def test_a_batch_is_answered_request_by_request(self) -> None:
        pixels = as_pixels(BODIES["tensor"]().data)
        classifier = Classifier()
        together = classifier.classify([pixels[:1], pixels[1:4]])
        assert [len(answers) for answers in together] == [1, 3]
        alone = classifier.classify([pixels[2:3]])[0][0]
        assert together[1][1]["classes"] == alone["classes"]
        assert together[1][1]["scores"] == pytest.approx(alone["scores"], rel=1e-4)

    def test_the_floor_reads_the_whole_body(self) -> None:
        incoming = [
            {"type": "http.request", "body": b"abc", "more_body": True},
            {"type": "http.request", "body": b"de"},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return incoming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(echo.app({"type": "http"}, receive, send))
        assert sent[0]["status"] == 200
        assert json.loads(sent[1]["body"]) == {"bytes": 5}

    def test_the_catalog_has_our_model(self, tmp_path: Path) -> None:
        (spec,) = read_catalog(contenders.write_model(tmp_path), ())
        assert spec.checkpoint is not None
        assert spec.checkpoint.is_file()

    def test_each_takes_what_is_sent_in_its_way(self, tmp_path: Path) -> None:
        picture = BODIES["small"]()
        tensor = BODIES["tensor"]()
        ours = contenders.ours(tmp_path, 3)
        assert ours.address(picture) == ("/classify?r=0", picture.bare())
        assert ours.address(tensor)[0] == "/v2/models/tiny/infer"
        _, variables = ours.at_port(81)
        assert (variables["TOME_PORT"], variables["TOME_API_WORKERS"]) == ("81", "3")
        assert contenders.mosec().address(tensor) == ("/tensor", tensor.bare())
        command, _ = contenders.litserve(2).at_port(82)
        assert command[-4:] == ["--api-servers", "2", "--port", "82"]


def process(pid: int, command: str, seconds: float, main_seconds: float = 0.0) -> Process:
    return Process(pid, 1, 1, 100, command, seconds, main_seconds)


def keyed(*processes: Process) -> dict[tuple[int, int], Process]:
    return {(one.pid, one.started): one for one in processes}


class TestCpuTime:
    def test_kinds_of_a_tree_with_api_processes(self) -> None:
        before = keyed(
            process(1, "python -m server serve", 1.0, 1.0),
            process(2, "python -m server.api 3", 2.0, 1.0),
            process(4, "python -m server.engine 5", 3.0, 2.0),
        )
        after = keyed(
            process(1, "python -m server serve", 1.25, 1.25),
            process(2, "python -m server.api 3", 4.0, 2.5),
            process(3, "python -m server.api 3", 1.0, 0.25),  # it started between them
            process(4, "python -m server.engine 5", 7.0, 2.0),
            process(5, "python -m server.decoding 6", 0.5, 0.5),
        )
        found = seconds_by_kind(before, after, root=1)
        assert found == {PARENT: 0.25, API_MAIN: 1.75, API_OTHER: 1.25, ENGINES: 4.0, OTHER: 0.5}
        assert sum(found.values()) == total_seconds(before, after)

    def test_without_api_processes_the_first_one_is_it(self) -> None:
        after = keyed(process(1, "server serve", 3.0, 1.0), process(2, "server.engine", 4.0))
        found = seconds_by_kind({}, after, root=1)
        assert (found[PARENT], found[API_MAIN], found[API_OTHER]) == (0.0, 1.0, 2.0)

    def test_a_number_that_is_used_again_is_another_process(self) -> None:
        before = keyed(process(1, "x", 9.0))
        after = keyed(replace(process(1, "y", 0.5), started=200))
        assert total_seconds(before, after) == 0.5

    def test_threads_children_and_other_sessions_count(self) -> None:
        command = [sys.executable, "-c", BUSY]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        ) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"1\n"
            after = snapshot(running.pid)
            running.communicate(b"\n")
        assert len(after) == 2
        found = seconds_by_kind({}, after, running.pid)
        # Ticks of 10 ms round down; imports add some to the main thread.
        assert found[API_MAIN] > 0.08
        assert found[API_OTHER] > 0.18
        assert found[ENGINES] > 0.28
        assert sum(found.values()) == pytest.approx(total_seconds({}, after))
        assert os.getpid() not in {pid for pid, _ in after}
        assert snapshot(running.pid) == {}


def run(
    contender: str = contenders.OURS,
    api_processes: int | None = 1,
    rate: float = 100.0,
    cpu: float = 2.0,
    number: int = 0,
    **changes: Any,
) -> Run:
    kinds = dict.fromkeys(KINDS, cpu / len(KINDS)) if contender == contenders.OURS else {}
    made = Run(
        contender=contender,
        api_processes=api_processes,
        cores=2,
        body="noise",
        round=number,
        requests=1000,
        requests_per_s=rate,
        images=1,
        p50=0.010,
        p99=0.020,
        cpu=cpu,
        cpu_by_kind=kinds,
    )
    return replace(made, **changes)


class TestReport:
    def test_medians_over_rounds_of_each_contender(self) -> None:
        runs = [run(rate=rate, number=number) for number, rate in enumerate((90, 300, 100))]
        (row,) = rows([*runs, run(body="small")], "noise")
        assert (row.images_per_s, row.cpu) == (100, 0.002)
        assert row.cpu_by_kind[ENGINES] == pytest.approx(0.0004)

    def test_a_tensor_counts_its_images(self) -> None:
        (row,) = rows([run(images=16)], "noise")
        assert (row.images_per_s, row.cpu) == (1600, 0.002 / 16)

    def report(self, *runs: Run) -> str:
        return markdown(runs, {"noise": "JPEG, 38 kB", "small": "PNG"}, {"noise": 32}, {"a": "b"})

    def test_table(self) -> None:
        text = self.report(run(), run(contenders.MOSEC, None, 50, 4.0))
        lines = text.splitlines()
        ours = "| ours | 1 | 2 | 100 | 10.0 | 20.0 | 2.00 | 0.40 | 0.40 | 0.40 | 0.40 | 0.40 |"
        assert ours in lines
        assert "| mosec |  | 2 | 50 | 10.0 | 20.0 | 4.00 |  |  |  |  |  |" in lines
        assert "## JPEG, 38 kB" in lines
        assert "PNG" not in text

    def test_ratios_to_peers_with_as_many_processes(self) -> None:
        lines = self.report(
            run(),
            run(api_processes=4, rate=150, cpu=2.4),
            run(contenders.MOSEC, None, 80, 2.5),
            run(contenders.LITSERVE, 1, 50, 4.0),
            run(contenders.LITSERVE, 4, 75, 4.8),
        ).splitlines()
        assert (
            "ours with 1 API process: 0.80x of the CPU of mosec and 1.25x of its images/s; 0.50x of"
            " the CPU of litserve with 1 API process and 2.00x of its images/s." in lines
        )
        assert (
            "ours with 4 API processes: 0.96x of the CPU of mosec and 1.88x of its images/s; 0.50x"
            " of the CPU of litserve with 4 API processes and 2.00x of its images/s." in lines
        )
        assert (
            "ours with 4 API processes on 2 cores, beside 1 on 2 cores: 1.50x of the images/s,"
            " 1.20x of the CPU." in lines
        )

    def test_scaling(self) -> None:
        lines = self.report(run(cores=1), run(api_processes=2, rate=170)).splitlines()
        assert (
            "ours with 2 API processes on 2 cores, beside 1 on 1 core: 1.70x of the images/s, 1.00x"
            " of the CPU." in lines
        )


class TestCommandLine:
    def test_all_take_turns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command_line, "find_spec", lambda name: True)
        args = parse(["--only", "ours,mosec,echo", "--workers", "1", "4", "--cores", "1"])
        turns = [
            (contender.name, contender.api_processes, cores)
            for contender, cores in plan(args, tmp_path)
        ]
        assert turns == [
            ("ours", 1, 1),
            ("ours", 4, 1),
            ("mosec", None, 1),
            ("echo", 1, 1),
            ("echo", 4, 1),
        ]

    def test_quick_is_one_round_unless_others_are_asked_for(self) -> None:
        arguments = ["--quick", "--only", "ours"]
        args = parse(arguments)
        assert (args.rounds, args.seconds, args.workers) == (1, 2.0, (1,))
        args = parse([*arguments, "--rounds", "2", "--workers", "3"])
        assert (args.rounds, args.workers) == (2, [3])

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["--only", "ours,triton"], "there is no triton; there are ours,mosec,litserve,echo"),
            (["--bodies", "gif"], "there is no gif"),
            (["--only", "ours", "--rounds", "-1"], "must be positive"),
            (["--only", "ours", "--cores", "4096"], "4096 cores are needed"),
        ],
    )
    def test_what_is_refused(
        self, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            parse(arguments)
        assert problem in capsys.readouterr().err

    def test_peers_that_are_not_there(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("benchmarks.front_end.__main__.find_spec", lambda name: None)
        with pytest.raises(SystemExit):
            parse([])
        assert "missing: mosec, litserve" in capsys.readouterr().err
        assert parse(["--only", "ours,echo"]).only == ("ours", "echo")

    def test_without_wrk_it_says_where_to_get_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", "")
        assert main(["--only", "echo"]) == 2
        assert "Debian's package wrk has it" in capsys.readouterr().out


def test_cores_are_given_back() -> None:
    usable = os.sched_getaffinity(0)
    with pinned(1):
        assert os.sched_getaffinity(0) == {min(usable)}
    assert os.sched_getaffinity(0) == usable


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_real_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.front_end.__main__.WARM_SECONDS", 1)
    there = [name for name in ("mosec", "litserve") if find_spec(name)]
    only = ",".join(["ours", *there, "echo"])
    output = tmp_path / "runs.json"
    options = ["--quick", "--only", only, "--bodies", "small,tensor"]
    code = main([*options, "--output", str(output), "--logs", str(tmp_path)])
    assert code == 0, capsys.readouterr().out
    runs = json.loads(output.read_text())["runs"]
    assert [(one["contender"], one["body"]) for one in runs] == [
        (name, body) for name in only.split(",") for body in ("small", "tensor")
    ]
    for one in runs:
        assert one["cpu"] > 0, one
        if one["contender"] == "ours":
            kinds = one["cpu_by_kind"]
            assert min(kinds[API_MAIN], kinds[ENGINES]) > 0
            assert sum(kinds.values()) == pytest.approx(one["cpu"])
