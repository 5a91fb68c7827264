"""What the server prints when it is ready."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from server.media.modality import Modality
from server.supervision.lifecycle import ready_line


@pytest.mark.parametrize(
    ("urls", "request_target"),
    [
        (["http://[::]:80"], ".png 'http://[::]:80/"),
        (["http://127.0.0.1:80", "http://[::1]:80"], ".png 'http://127.0.0.1:80/"),
        (["unix:/run/a"], ".png --unix-socket /run/a 'http://localhost/"),
    ],
)
def test_the_line_has_all_urls_and_a_request(urls: Sequence[str], request_target: str) -> None:
    line = ready_line(urls, Modality.IMAGE)
    assert line.startswith(f"ready: {' '.join(urls)}  try: curl --data-binary @examples/")
    assert line.endswith(f"{request_target}classify?r=16'\n")


def test_the_request_has_what_the_default_model_takes() -> None:
    line = ready_line(["http://127.0.0.1:80"], Modality.AUDIO)
    assert "@examples/french.wav 'http://127.0.0.1:80/classify" in line
    line = ready_line(["http://127.0.0.1:80"], Modality.VIDEO)
    assert ".mp4 'http://127.0.0.1:80/classify" in line
