from __future__ import annotations

import asyncio

import numpy as np
import pytest

from server.api.pipeline.admission import Admission, BodyLimits, BufferedInput, Reservation
from server.api.pipeline.base64_image import Base64Image
from server.api.pipeline.body import RequestImages
from server.api.pipeline.inference import read_images
from server.errors import Overloaded, UnsupportedFormat
from server.media.modality import Modality
from tests.server.api.pipeline.fakes import FakeRouter, request_of


@pytest.fixture
def admission() -> Admission:
    limits = dict.fromkeys(Modality, BodyLimits(200, 30))
    return Admission(FakeRouter(), limits, 200)  # type: ignore[arg-type]


@pytest.fixture
def reservation(admission) -> Reservation:
    return Reservation(admission, admission.limits[Modality.IMAGE])


def buffered(content: bytes, reservation: Reservation) -> BufferedInput:
    reservation.add(len(content))
    return BufferedInput(content, reservation, len(content))


def test_a_released_image_is_neither_held_nor_counted(admission, reservation):
    image = buffered(b"12345", reservation)
    other = buffered(b"678", reservation)
    image.release()
    assert admission.bytes_held == 3
    assert image.encoded_bytes() == b""
    assert other.encoded_bytes() == b"678"


def test_an_image_that_is_released_twice_gives_its_bytes_back_once(admission, reservation):
    image = buffered(b"12345", reservation)
    buffered(b"678", reservation)
    image.release()
    image.release()
    assert admission.bytes_held == 3


def test_a_cleared_body_still_counts(admission, reservation):
    body = buffered(b"12345", reservation)
    body.clear()
    assert body.encoded_bytes() == b""
    assert admission.bytes_held == 5


def test_what_is_decoded_counts_in_place_of_a_sound(admission, reservation):
    sound = buffered(b"12345", reservation)
    sound.replace_by(150)
    assert (sound.encoded_bytes(), admission.bytes_held) == (b"", 150)
    with pytest.raises(Overloaded, match="too many bytes"):
        sound.replace_by(201)
    assert admission.bytes_held == 0
    sound.release()


def test_images_of_a_parsed_body_count_for_it_in_proportion_to_their_bytes(admission, reservation):
    body = buffered(b"x" * 101, reservation)
    images = body.split([b"1", Base64Image(b"MTIz"), np.zeros(5, np.float32), b""])
    assert [image.size for image in images] == [4, 16, 80, 0]
    assert images[1].encoded_bytes() == b"123"
    images[0].release()
    assert admission.bytes_held == 97
    for image in images:
        image.release()
    assert admission.bytes_held == 1  # what does not divide stays until the request ends


def test_base64_is_decoded_when_the_content_is_taken(admission, reservation):
    reservation.add(8)
    image = BufferedInput(Base64Image(b"MTIzNDU="), reservation, 8)
    assert image.encoded_bytes() == b"12345"
    image.release()
    assert (image.encoded_bytes(), admission.bytes_held) == (b"", 0)


def read(body: bytes, content_type: str | None, admission: Admission) -> RequestImages:
    headers = {} if content_type is None else {"content-type": content_type}
    reservation = Reservation(admission, admission.limits[Modality.IMAGE])
    return asyncio.run(read_images(request_of([body], headers), admission, reservation))


@pytest.mark.parametrize(
    "content_type", [None, "", "image/png", "application/x-www-form-urlencoded", "nonsense"]
)
def test_a_body_of_another_type_is_one_image(content_type, admission):
    found = read(b"hello", content_type, admission)
    assert [image.content for image in found.images] == [b"hello"]
    assert not found.as_list
    assert not found.is_json


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data; boundary=x", "Multipart/Mixed;boundary=x"]
)
def test_the_files_of_a_form_are_a_list(content_type, admission):
    header = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    found = read(header + b"hello\r\n--x--\r\n", content_type, admission)
    assert [image.content for image in found.images] == [b"hello"]
    assert found.as_list


def test_an_object_is_json_by_its_content_and_its_type(admission):
    assert read(b'{"image": ""}', "application/json", admission).is_json
    assert not read(b"hello", "application/json", admission).is_json
    with pytest.raises(UnsupportedFormat, match="application/json"):
        read(b"{}", "image/png", admission)
