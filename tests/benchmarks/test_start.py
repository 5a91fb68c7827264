"""`python -m benchmarks.start` with a real server."""

from __future__ import annotations

import re

import pytest

from benchmarks import start
from tests.server.conftest import free_port


@pytest.mark.slow
def test_it_says_what_a_start_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "PORT", free_port())
    monkeypatch.setenv("TOME_THREADS", "1")
    monkeypatch.setenv("TOME_LEVELS", "0,16")
    assert start.main(["--model", "vit_tiny_patch16_224", "--rounds", "1"]) == 0
    output = capsys.readouterr().out
    seconds = dict(re.findall(r"│ ([^│]*?) +│ +(\d+\.\d\d) +│", output))
    alone = float(seconds["torch, timm and the weights alone"])
    served = float(seconds["the server, until it is ready"])
    assert 0 < float(seconds["importing PyTorch and timm for device auto"]) < served
    assert float(seconds["ratio of the first two"]) == pytest.approx(served / alone, rel=0.05)


def test_a_server_that_cannot_start_is_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "PORT", free_port())
    config = tmp_path / "models.toml"
    config.write_text("")
    with pytest.raises(SystemExit, match=r"(?s)ended before it was ready.*must hold one or more"):
        start.server_seconds(config)
