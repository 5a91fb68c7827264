"""Replies of a worker are checked: it may have been taken over by a body."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.decoding import messages
from server.decoding.messages import BadReply, Done, Failed, Ready, Refused, Task, unpack_reply
from server.errors import BadMedia, RequestError, TooLarge, UnsupportedFormat
from server.media.decoded import Decoded, SoundInfo, VideoInfo, Window
from server.media.limits import AudioLimits, VideoLimits
from tests.server.decoding.pools import CLIP, TRANSFORM

TASK = Task(7, TRANSFORM, AudioLimits(max_windows=3), cpu_seconds=5.0)
VIDEO_TASK = Task(7, CLIP, VideoLimits(max_pixels=10_000), cpu_seconds=5.0)
INFO = SoundInfo(seconds=2.5, sample_rate=44_100, channels=2)
VIDEO_INFO = VideoInfo(seconds=4.0, frames=100, frame_rate=25.0, width=100, height=50, codec="h264")
DONE: dict[str, Any] = {
    "kind": "done",
    "task": 7,
    "shape": [1, 1, 4, 8],
    "windows": [[0.0, 0.5, 0]],
    "media": {"seconds": 0.5, "sample_rate": 16_000, "channels": 1},
}
REFUSED: dict[str, Any] = {
    "kind": "refused",
    "task": 7,
    "error": "BadMedia",
    "detail": "it is empty",
    "extensions": {},
}


@pytest.mark.parametrize("task", [TASK, VIDEO_TASK])
def test_tasks_survive(task: Task) -> None:
    assert Task.unpack(task.pack()) == task


def test_the_memory_for_a_result_holds_the_most_windows() -> None:
    assert TASK.result_bytes == 3 * (1 * 4 * 8) * 4
    assert VIDEO_TASK.result_bytes == 2 * 3 * (3 * 2 * 4 * 8)


def test_a_result_survives() -> None:
    windows = (Window(0.0, 1.5), Window(1.0, 2.5))
    decoded = Decoded(np.zeros((2, 1, 4, 8), np.float32), windows, INFO)
    reply = unpack_reply(messages.pack_done(7, decoded), TASK)
    assert reply == Done((2, 1, 4, 8), windows, INFO)


def test_a_result_of_video_survives() -> None:
    windows = (Window(0.0, 1.5, 0), Window(0.0, 1.5, 1), Window(0.0, 1.5, 2))
    decoded = Decoded(np.zeros((3, 3, 8, 8), np.uint8), windows, VIDEO_INFO)
    reply = unpack_reply(messages.pack_done(7, decoded), VIDEO_TASK)
    assert reply == Done((3, 3, 8, 8), windows, VIDEO_INFO)


@pytest.mark.parametrize("error_type", [BadMedia, TooLarge, UnsupportedFormat])
def test_a_refusal_survives(error_type: type[RequestError]) -> None:
    message = messages.pack_refused(7, error_type("why", allowed=["WAV"]))
    reply = unpack_reply(message, TASK)
    assert isinstance(reply, Refused)
    assert type(reply.error) is error_type
    assert reply.error.detail == "why"
    assert reply.error.extensions == {"allowed": ["WAV"]}


def test_the_start_and_failures_survive() -> None:
    assert unpack_reply(messages.pack_ready(["Landlock: why"]), None) == Ready(("Landlock: why",))
    failed = messages.pack_failed("x" * 100_000 + "end", out_of_memory=True)
    assert len(failed) < messages.MAX_BYTES
    reply = unpack_reply(failed, TASK)
    assert isinstance(reply, Failed)
    assert reply.out_of_memory
    assert reply.text.endswith("end")


def media(**changes: Any) -> dict[str, Any]:
    return {"media": DONE["media"] | changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "ready"},
        {"kind": "something"},
        {"kind": []},
        {"task": 6},
        {"task": 8},
        {"task": -1},
        {"task": None},
        {"shape": [4, 1, 4, 8], "windows": [[0.0, 0.5, 0]] * 4},
        {"shape": [0, 1, 4, 8], "windows": []},
        {"shape": [-1, 1, 4, 8]},
        {"shape": [1.0, 1, 4, 8]},
        {"shape": [True, 1, 4, 8]},
        {"shape": [1, 1, 4, 1 << 40]},
        {"shape": [1, 1, 32]},
        {"shape": 1},
        {"shape": []},
        {"windows": []},
        {"windows": [[0.0, 0.5, 0]] * 2},
        {"windows": [[0.5, 0.0, 0]]},
        {"windows": [[-1.0, 0.5, 0]]},
        {"windows": [[0.0, float("inf"), 0]]},
        {"windows": [[float("nan"), 0.5, 0]]},
        {"windows": [["0", "1", 0]]},
        {"windows": [[0.0]]},
        {"windows": [[0.0, 0.5, 1]]},
        media(seconds=float("nan")),
        media(seconds=1e9),
        media(seconds="1"),
        media(sample_rate=1),
        media(sample_rate=16_000.5),
        media(channels=0),
        media(channels=True),
        {"media": []},
        {"media": {}},
    ],
)
def test_a_result_that_breaks_a_limit_is_none(changes: dict[str, Any]) -> None:
    assert isinstance(unpack_reply(json.dumps(DONE).encode(), TASK), Done)
    with pytest.raises(BadReply):
        unpack_reply(json.dumps(DONE | changes).encode(), TASK)


DONE_VIDEO: dict[str, Any] = {
    "kind": "done",
    "task": 7,
    "shape": [1, 3, 8, 8],
    "windows": [[0.0, 0.5, 2]],
    "media": asdict(VIDEO_INFO),
}


def video(**changes: Any) -> dict[str, Any]:
    return {"media": DONE_VIDEO["media"] | changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [7, 3, 8, 8], "windows": [[0.0, 0.5, 0]] * 7},
        {"shape": [1, 3, 2, 4, 8]},
        {"windows": [[0.0, 0.5]]},
        {"windows": [[0.0, 0.5, 3]]},
        {"windows": [[0.0, 0.5, -1]]},
        {"windows": [[0.0, 0.5, True]]},
        {"windows": [[0.0, 1e6, 0]]},
        video(seconds=1e6),
        video(frames=0),
        video(frames=10**9),
        video(frames=1.5),
        video(frame_rate=float("inf")),
        video(width=0),
        video(width=5_000, height=1),
        video(width=200, height=51),
        video(height="50"),
        video(codec="h264\r\nset-cookie: x"),
        video(codec="x" * 33),
        video(codec=""),
        video(codec=None),
        {"media": DONE["media"]},
    ],
)
def test_a_result_of_video_that_breaks_a_limit_is_none(changes: dict[str, Any]) -> None:
    assert isinstance(unpack_reply(json.dumps(DONE_VIDEO).encode(), VIDEO_TASK), Done)
    with pytest.raises(BadReply):
        unpack_reply(json.dumps(DONE_VIDEO | changes).encode(), VIDEO_TASK)


@pytest.mark.parametrize(
    "changes",
    [
        {"error": "Overloaded"},
        {"error": "Exception"},
        {"error": []},
        {"detail": 1},
        {"detail": "x" * 10_000},
        {"extensions": {"headers": {"set-cookie": "x"}}},
        {"extensions": {"retry_after": 1e9}},
        {"extensions": {"status": 200}},
        {"extensions": {"self": 1}},
        {"extensions": ["a"]},
        {"extensions": None},
    ],
)
def test_a_refusal_can_set_no_more_than_its_reason(changes: dict[str, Any]) -> None:
    assert isinstance(unpack_reply(json.dumps(REFUSED).encode(), TASK), Refused)
    with pytest.raises(BadReply):
        unpack_reply(json.dumps(REFUSED | changes).encode(), TASK)


@pytest.mark.parametrize(
    "message", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 60_000, b"1" * 5_000, b'{"kind": "done"}']
)
def test_other_bytes_are_no_reply(message: bytes) -> None:
    with pytest.raises(BadReply):
        unpack_reply(message, TASK)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=50)
@given(
    st.sampled_from([DONE, DONE_VIDEO, REFUSED]),
    st.dictionaries(
        st.sampled_from(["kind", "shape", "windows", "media", "error", "detail", "extensions"]),
        ANYTHING,
    ),
)
def test_any_json_is_a_reply_or_refused(reply: dict[str, Any], changes: dict[str, Any]) -> None:
    for task in (TASK, VIDEO_TASK):
        with contextlib.suppress(BadReply):
            unpack_reply(json.dumps(reply | changes).encode(), task)
