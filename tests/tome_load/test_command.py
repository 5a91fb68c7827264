"""`tome-serve load` and its load generator against a real server."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Literal

import pytest

from server.commands.cli import main
from tests.server.conftest import ROOT, RunningServer, eventually, run_server
from tests.server.tiny_ear import sound
from tome_load.record import Record, digest
from tome_load.report import LoadReport
from tome_load.run import run_load
from tome_load.spec import LoadSpec
from tome_load.uploads import read_uploads


def test_the_report_agrees_with_the_metrics_of_the_server(
    default_server: RunningServer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    eventually(lambda: default_server.metric("tome_queue_jobs") == 0)
    batches = default_server.metric("tome_batch_images_sum")
    load = [
        "--url",
        default_server.url,
        "--r",
        "0",
        "--r=16",
        "--requests",
        "40",
        "--connections",
        "4",
    ]
    options = ["--connections=4", "--seed=3", "--deadline-ms", "20000", "--json", str(file)]
    assert main(["load", *load, *options, "--expect", "1"]) == 0
    printed = capfd.readouterr().out
    report = json.loads(file.read_text())
    probes = 2  # one for each r
    eventually(lambda: default_server.metric("tome_batch_images_sum") == batches + 40 + probes)
    assert "closed loop of 4, 40 requests" in printed
    assert "answered within 20000 ms" in printed
    assert "ms of CPU time per request" in printed
    assert (report["requests"], report["good"], report["outcomes"]) == (40, 40, {"200": 40})
    assert set(report["r_used"]) == {"0", "16"} and sum(report["r_used"].values()) == 40
    assert report["r_mean"] == pytest.approx(16 * report["r_used"]["16"] / 40)
    assert report["batch_mean"] >= 1 and 11 < report["tokens_mean"] < 197
    assert report["service"]["p50"] <= report["service"]["p99"] <= report["service"]["max"]
    assert report["spec"]["url"] == default_server.url and report["spec"]["r"] == ["0", "16"]


@pytest.mark.parametrize("endpoint", ["classify", "embed"])
def test_each_answer_is_that_of_its_image_and_r(
    default_server: RunningServer, endpoint: Literal["classify", "embed"]
) -> None:
    """In an open loop with mixed r, answers to the same image and r have the same result."""
    answers: dict[tuple[int, str], list[dict]] = defaultdict(list)

    def observe(record: Record) -> None:
        assert record.status == 200, record
        assert record.used == record.r
        assert len(digest(record.body)) == 32
        answers[record.upload, record.r].append(json.loads(record.body))

    spec = LoadSpec(
        default_server.url,
        read_uploads([]),
        rate=100,
        requests=80,
        r=("0", "16", "16:-1"),
        endpoint=endpoint,
    )
    report = asyncio.run(run_load(spec, observe))
    assert report.outcomes == {"200": 80}
    assert len(answers) > 12
    for several in answers.values():
        assert len({answer["tokens"]["output"] for answer in several}) == 1
        if endpoint == "classify":
            assert len({answer["predictions"][0]["label"] for answer in several}) == 1
        else:
            first, *rest = (answer["embedding"] for answer in several)
            assert all(one == pytest.approx(first, abs=0.1) for one in rest)


def test_sounds_are_sent_to_a_model_of_sound(
    ear_server: RunningServer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(sound(2, seed=ord(name[0])))
    (tmp_path / "c.png").write_bytes(b"no sound")
    load = ["load", "--url", ear_server.url, "--r", "0 2", "--requests=12", "--expect=1"]
    for files in ([], [str(tmp_path)], [str(tmp_path / "a.wav")]):
        assert main([*load, *files, "--model", "ear", "--json=-"]) == 0, capfd.readouterr().err
        report = json.loads(capfd.readouterr().out)
        assert report["outcomes"] == {"200": 12}
        uploads = report["spec"]["uploads"]
        assert all(name.endswith(".wav") for name in uploads), uploads
    assert main([*load, "--model", "tiny"]) == 0
    assert main([*load, str(tmp_path / "a.wav"), "--model", "tiny"]) == 1
    assert "takes images" in capfd.readouterr().err


def test_videos_are_sent_to_a_model_of_video(
    clip_server: RunningServer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "examples" / "rabbit.mp4", tmp_path)
    load = ["load", "--url", clip_server.url, "--model", "clip", "--r", "0 4", "--requests=8"]
    for files in ([], [str(tmp_path)]):
        assert main([*load, *files, "--expect=1", "--json=-"]) == 0, capfd.readouterr().err
        report = json.loads(capfd.readouterr().out)
        assert report["outcomes"] == {"200": 8}
        assert "rabbit.mp4" in report["spec"]["uploads"]
        assert set(report["r_used"]) == {"0", "4"}
    assert main([*load, "examples/bag.png"]) == 1
    assert "takes videos" in capfd.readouterr().err


def test_a_mistake_that_the_server_finds_stops_the_run(
    default_server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", "--url", default_server.url, "--r", "500"]) == 1
    assert (
        "refuses r=500: 422, r=500 is too large for fashion-mnist; allowed are 0 to 98"
        in capfd.readouterr().err
    )
    assert main(["load", "README.md", "--url", default_server.url]) == 1
    assert "415" in capfd.readouterr().err


def test_too_little_goodput_is_a_failure(
    default_server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--url",
        default_server.url,
        "--requests",
        "5",
        "--deadline-ms",
        "0.01",
        "--json=-",
    ]
    assert main(["load", *arguments]) == 1
    captured = capfd.readouterr()
    report = json.loads(captured.out)  # the tables are on stderr
    assert (report["good"], report["requests"]) == (0, 5)
    assert "no request was answered" in captured.err
    assert (
        main(["load", "--url", default_server.url, "--requests=5", "--timeout=30", "--expect=1"])
        == 0
    )


def test_a_key_comes_from_a_file_or_the_environment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "key"
    file.write_text("first-secret\n")
    with run_server(api_keys="first-secret", levels="0", max_batch=1) as guarded:
        arguments = ["load", "--url", guarded.url, "--requests", "3"]
        assert main(arguments) == 1
        assert "401, this server asks for an API key" in capfd.readouterr().err
        assert main([*arguments, "--api-key-file", str(file)]) == 0
        monkeypatch.setenv("TOME_API_KEY", "first-secret")
        assert main([*arguments, "--json", "-"]) == 0
        assert "secret" not in "".join(capfd.readouterr())


def test_an_interrupt_ends_the_sending_and_the_report_is_printed(
    default_server: RunningServer,
) -> None:
    before = default_server.metric("tome_batch_images_sum")
    load = ["load", "--url", default_server.url, "--rate", "30", "--duration", "600"]
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *load],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: default_server.metric("tome_batch_images_sum") > before + 5, 90)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=90)
    assert (process.returncode, errors) == (130, "")
    assert "open loop, 30 requests/s, poisson" in printed
    assert "response, from when it was to be sent" in printed


def test_refusals_are_counted_apart_from_answers() -> None:
    async def overload(url: str) -> LoadReport:
        spec = LoadSpec(url, read_uploads([]), connections=16, requests=120, probe=False)
        return await run_load(spec)

    with run_server(levels="0", max_batch=1, queue_limit=2) as small:
        report = asyncio.run(overload(small.url))
    assert report.reasons == {"queue-full": report.outcomes["503"]}
    assert report.refused is not None and report.refused.count == report.outcomes["503"]
    assert report.answered + report.refused.count == report.requests == 120


def test_the_clients_import_no_large_library() -> None:
    code = "import tome_load.command, tome_top.command, sys; print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert not {"torch", "numpy", "fastapi", "starlette", "uvicorn", "PIL"} & set(names.split())
