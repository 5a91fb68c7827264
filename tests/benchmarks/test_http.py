"""The arithmetic and the bytes of `python -m benchmarks.http`; the load itself is wrk's."""

from __future__ import annotations

import http.server
import io
import shlex
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import http as bench
from benchmarks import servers
from benchmarks.http import main, parse, stage_seconds
from benchmarks.http_report import (
    Rounds,
    bound,
    http_seconds,
    http_seconds_beside,
    markdown,
    mixed_ratio,
)
from benchmarks.parts import Parts, measure_parts
from benchmarks.results import command_line
from benchmarks.wrk import Body, FailedRequests, Load, bare, form, read
from server.api.pipeline.multipart import FileParts
from server.catalog.entries import BUNDLED
from tome_load.pictures import generate_jpeg
from tome_top.scrape import Scrape

LEVELS = (0, 16)
PARTS = Parts(decode=0.002, images=32, batch={0: 0.64, 16: 0.32}, single={0: 0.030, 16: 0.020})

ECHO = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if body == b"picture" else 400)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def load(images_per_s: float, p50: float = 0.1) -> Load:
    return Load(images_per_s, p50, 2 * p50, 3 * p50)


def rounds(**changes: Any) -> Rounds:
    ours = {
        "r=0": load(40),
        "r=16": load(60),
        "mixed": load(36),
        "r=0, one connection": replace(load(25, 0.0345), stages=0.0375),
        "r=16, one connection": replace(load(40, 0.024), stages=0.0232),
    }
    peer = {"peer": load(30), "peer, one connection": load(20)}
    return replace(Rounds(LEVELS, 2, {"threads": "2"}, [ours], [peer], [PARTS]), **changes)


class TestPicture:
    def test_it_is_the_same_every_time_and_as_large_as_a_photograph(self) -> None:
        assert generate_jpeg() == generate_jpeg()
        assert Image.open(io.BytesIO(generate_jpeg())).size == (500, 375)
        assert 20_000 < len(generate_jpeg()) < 120_000

    def test_a_form_holds_exactly_the_image(self) -> None:
        body = form(generate_jpeg(), "file")
        parts = FileParts(body.content_type)
        parts.feed(body.content)
        assert parts.finish() == [generate_jpeg()]
        assert bare(b"x") == Body(b"x", "image/jpeg")


class TestLoad:
    LINE = '{"requests": 300, "seconds": 1.5, "p50": 0.1, "p90": 0.2, "p99": 0.3, "failed": %d}'

    def test_what_the_script_printed(self) -> None:
        assert read(f"Running 10s test\n  1 threads\n{self.LINE % 0}\n") == Load(
            200.0, 0.1, 0.2, 0.3, requests=300
        )

    def test_failed_requests_are_no_result(self) -> None:
        with pytest.raises(FailedRequests, match="7 of 300"):
            read(self.LINE % 7)


class TestReport:
    def test_bound(self) -> None:
        # 20 ms of forward and 2 ms of decoding, which two cores share.
        assert bound(rounds(), [0]) == pytest.approx(1 / 0.021)
        assert bound(rounds(), LEVELS) == pytest.approx(1 / 0.016)

    def test_mixed_r_is_compared_with_the_harmonic_mean(self) -> None:
        assert mixed_ratio(rounds()) == pytest.approx(36 / 48)

    def test_what_http_adds(self) -> None:
        assert http_seconds(rounds(), 0) == pytest.approx(0.0345 - 0.032)
        assert http_seconds_beside(rounds(), 0) == pytest.approx(0.040 - 0.0375)

    def test_stages_are_those_between_two_readings(self) -> None:
        text = """
            tome_stage_duration_seconds_sum{{stage="queue"}} 9
            tome_stage_duration_seconds_sum{{stage="decode"}} {decode}
            tome_stage_duration_seconds_count{{stage="decode"}} {images}
            tome_stage_duration_seconds_sum{{stage="forward"}} {forward}
            tome_stage_duration_seconds_count{{stage="forward"}} {images}
        """
        before, after = (
            Scrape.parse(
                textwrap.dedent(text).format(decode=decode, forward=forward, images=images), 0.0
            )
            for decode, forward, images in ((1, 5, 10), (1.4, 8.6, 110))
        )
        assert stage_seconds(before, after) == pytest.approx(0.04)

    def test_markdown(self) -> None:
        lines = markdown(rounds()).splitlines()
        assert "| r=16 | 60.0 | 100.0 | 200.0 | 300.0 | 0.66 of 90.9 | 2.00x of 30.0 |" in lines
        assert "| r=0, one connection | 25.0 | 34.5 | 69.0 | 103.5 |  | 1.25x of 20.0 |" in lines
        assert (
            "On one connection at r=16, HTTP adds 1.8 ms to what the server took for decoding and"
            " the forward pass in the same requests, and 2.0 ms to what these take alone, at"
            " another time." in lines
        )

    def test_without_a_peer_it_has_no_column(self) -> None:
        assert "peer" not in markdown(rounds(peer=[]))


def test_parts_of_a_real_model(tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(generate_jpeg())
    parts = measure_parts(BUNDLED, picture, (16,), images=2, threads=1, dtype="float32")
    assert parts.decode > 0
    assert 0 < parts.single[16] < parts.batch[16] + 1
    assert parts.bound((16,), cores=2) == pytest.approx(
        1 / (parts.batch[16] / 2 + parts.decode / 2)
    )


class TestPeer:
    @pytest.fixture
    def port(self) -> Iterator[int]:
        with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as free:
            port = free.server_port
        yield port

    def test_it_answers_inside_the_block_and_is_gone_after(self, port: int, tmp_path: Path) -> None:
        script = tmp_path / "echo.py"
        script.write_text(ECHO)
        url = f"http://127.0.0.1:{port}/predict"
        body = Body(b"picture", "image/jpeg")
        with servers.other(
            f"{sys.executable} {script} {port}", url, body, tmp_path / "log"
        ) as address:
            assert address == url
        with http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler):
            pass  # the port is free again

    def test_one_that_ends_is_reported_at_once(self, port: int, tmp_path: Path) -> None:
        with (
            pytest.raises(servers.NotReady, match=r"ended with code 3 .*log says why"),
            servers.other(
                f"{sys.executable} -c 'raise SystemExit(3)'",
                f"http://127.0.0.1:{port}",
                bare(b"x"),
                tmp_path / "log",
            ),
        ):
            pass


def test_the_command_is_told_without_folders() -> None:
    peer = "env REF=/a/ToMe PORT=89 /b/bin/python /c/app.py"
    arguments = [
        "--peer",
        peer,
        "--peer-url",
        "http://127.0.0.1:89/predict",
        "--out",
        "benchmarks/results",
    ]
    assert (
        command_line("benchmarks.http", arguments)
        == "python -m benchmarks.http --peer env REF=ToMe PORT=89 python app.py "
        "--peer-url http://127.0.0.1:89/predict --out benchmarks/results"
    )


def test_litserve_is_the_peer_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = tmp_path / "a b"
    (checkout / "tome" / "patch").mkdir(parents=True)
    (checkout / "tome" / "patch" / "timm.py").touch()
    monkeypatch.setattr(bench, "find_spec", lambda name: name)
    args = parse(["--tome", str(checkout), "--threads", "3", "--dtype", "float32"])
    command = shlex.split(args.peer)
    assert command[1:5] == ["-W", "ignore", "-m", "benchmarks.litserve_peer"]
    asked = dict(zip(command[5::2], command[6::2], strict=True))
    assert (asked["--tome"], asked["--threads"], asked["--dtype"]) == (
        str(checkout),
        "3",
        "float32",
    )
    assert (args.peer_url, args.peer_form) == (
        f"http://127.0.0.1:{asked['--port']}/predict",
        "file",
    )
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    for arguments, problem in (
        ([str(checkout), "--peer", "y"], "two peers"),
        ([str(checkout), "--peer-url", "y"], "two peers"),
        ([str(tmp_path)], "is no checkout"),
        ([str(checkout)], "LitServe is missing"),
    ):
        with pytest.raises(SystemExit):
            parse(["--tome", *arguments])
        assert problem in capsys.readouterr().err


def test_without_wrk_it_says_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([]) == 2
    assert "Debian's package wrk has it" in capsys.readouterr().out
