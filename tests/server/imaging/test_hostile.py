"""Every file of `tests.hostile`, and damaged images, are decoded or refused in bounded memory."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from server.errors import RequestError
from server.imaging.colours import convert
from server.imaging.decode import decode
from server.imaging.resize import resize_and_crop
from server.media.transforms import ImageTransform
from tests.hostile.files import FILES, MAX_PIXELS, MAX_SIDE, SEEDS, SLUGS
from tests.server.conftest import ROOT
from tests.server.wire import LEAKS, SNEAKER, assert_problem, read_response

RGB = ImageTransform((3, 28, 28), "bicubic", 0.9, "center")
GOOD = {name: body for name, body, status in FILES if status == 200}
NAMES = [name for name, _, _ in FILES]
# Allowed memory growth; an image within MAX_PIXELS takes at most 16 bytes a pixel.
MAX_GROWTH_MEGABYTES = 24


def status_of(body: bytes) -> int:
    try:
        pixels = decode(body, RGB, MAX_PIXELS, MAX_SIDE)
    except RequestError as error:
        assert not LEAKS.search(error.detail)
        assert error.slug == SLUGS[error.status]
        return error.status
    assert pixels.shape == RGB.size
    assert pixels.dtype == np.uint8
    return 200


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize(
    ("body", "status"), [(body, status) for _, body, status in FILES], ids=NAMES
)
def test_each_file_gets_its_status(body, status):
    assert status_of(body) == status


@pytest.mark.parametrize("name", [name for name in GOOD if "bomb" not in name])
def test_removed_metadata_changes_no_pixel(name):
    with Image.open(io.BytesIO(GOOD[name])) as opened:
        whole = convert(ImageOps.exif_transpose(opened), "RGB")
    np.testing.assert_array_equal(
        decode(GOOD[name], RGB, MAX_PIXELS, MAX_SIDE), resize_and_crop(whole, RGB)
    )


DAMAGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "repeat", "splice", "end"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=8),
    st.sampled_from(SEEDS),
)


def damage(
    body: bytes, operation: str, first: float, second: float, noise: bytes, other: bytes
) -> bytes:
    start, end = sorted((int(first * len(body)), int(second * len(body))))
    match operation:
        case "flip":
            flipped = bytes(a ^ b for a, b in zip(body[start:], noise, strict=False))
            return body[:start] + flipped + body[start + len(flipped) :]
        case "cut":
            return body[:start] + body[end:]
        case "insert":
            return body[:start] + noise + body[start:]
        case "repeat":
            return body[:end] + body[start:end] * 9 + body[end:]
        case "splice":
            return body[:start] + other[int(second * len(other)) :]
    return body[:start]


@settings(max_examples=500)
@given(body=st.sampled_from(SEEDS), damages=st.lists(DAMAGE, min_size=1, max_size=3))
def test_damaged_images_are_decoded_or_refused(body, damages):
    for each in damages:
        body = damage(body, *each)
    assert status_of(body) in (200, 400, 413, 415)


DECODE_ALL = """
import pathlib, resource, sys
from tests.server.imaging.test_hostile import FILES, status_of
status_of(FILES[0][1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, body, status in FILES:
    assert status_of(body) == status, name
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < int(sys.argv[1]) * 1024, name
"""


def test_memory_is_bounded_and_libraries_are_silent():
    command = [sys.executable, "-W", "error", "-c", DECODE_ALL, str(MAX_GROWTH_MEGABYTES)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_every_file_gets_its_status_over_http(server, client):
    def peak_megabytes() -> float:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    assert client.post("/classify?r=16", content=GOOD["progressive jpeg"]).status_code == 200
    before = peak_megabytes()
    for name, body, status in FILES:
        response = client.post(
            "/classify?r=16", content=body, headers={"Content-Type": "image/png"}
        )
        if status == 200:
            assert response.status_code == 200, name
        else:
            assert_problem(response, status, SLUGS[status])
    assert peak_megabytes() - before < 2 * MAX_GROWTH_MEGABYTES
    answer = client.post("/classify?r=16", content=SNEAKER).json()
    assert answer["predictions"][0]["label"] == "Sneaker"


def test_a_multipart_upload_refuses_bad_files_only(client):
    some = [*FILES[::7], ("sneaker", SNEAKER, 200)]
    parts = [("file", (name, body)) for name, body, _ in some if len(body) < 10_000]
    results = client.post("/classify?r=16", files=parts).json()["results"]
    expected = [status for _, body, status in some if len(body) < 10_000]
    assert [result.get("status", 200) for result in results] == expected


def test_a_body_that_arrives_slowly_times_out(server):
    with server.connect() as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n")
        stop = threading.Event()

        def drip(connection: socket.socket) -> None:
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip, args=(connection,))
        thread.start()
        try:
            assert_problem(read_response(connection), 408, "slow-body")
        finally:
            stop.set()
            thread.join()
