from __future__ import annotations

import pytest

from server.api.pipeline.admission import Admission, BodyLimits, Reservation
from server.api.pipeline.base64_image import Base64Image
from server.api.pipeline.inputs import BufferedInput, ParsedRequest, RequestImages
from server.errors import BadImage
from tests.server.api.pipeline.fakes import FakePool


@pytest.fixture
def admission() -> Admission:
    return Admission(FakePool(), BodyLimits(100, 100, 30))  # type: ignore[arg-type]


@pytest.fixture
def reservation(admission) -> Reservation:
    return Reservation(admission)


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


def test_images_of_a_parsed_body_count_as_equal_shares_of_it(admission, reservation):
    body = buffered(b"x" * 11, reservation)
    parsed = ParsedRequest(params=None, images=[b"1", b"22", b"333"])  # type: ignore[arg-type]
    images = parsed.take_images(body)
    assert [image.encoded_bytes() for image in images] == [b"1", b"22", b"333"]
    assert parsed.images == []
    images[0].release()
    assert admission.bytes_held == 8
    images[1].release()
    images[2].release()
    assert admission.bytes_held == 2  # what does not divide stays until the request ends


def test_a_request_for_one_image_has_one(reservation):
    image = buffered(b"1", reservation)
    assert RequestImages([image], as_list=True).single() is image
    with pytest.raises(BadImage, match="has 2 files"):
        RequestImages([image, image], as_list=True).single()


def test_base64_is_decoded_when_the_content_is_taken(admission, reservation):
    reservation.add(8)
    image = BufferedInput(Base64Image(b"MTIzNDU="), reservation, 8)
    assert image.encoded_bytes() == b"12345"
    image.release()
    assert (image.encoded_bytes(), admission.bytes_held) == (b"", 0)
