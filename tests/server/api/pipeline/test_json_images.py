from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.pipeline.json_images import (
    MAX_IMAGES,
    OBJECT_START,
    check_json_type,
    parse_json_images,
)
from server.errors import BadRequest, InvalidParameter, RequestError, TooLarge, UnsupportedFormat


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json", "text/json"],
)
def test_an_object_may_have_any_type_of_json(content_type):
    check_json_type(content_type)


@pytest.mark.parametrize("content_type", ["", "image/png", "text/plain", "application/jsonl"])
def test_an_object_of_another_type_is_neither_json_nor_an_image(content_type):
    with pytest.raises(UnsupportedFormat, match="send it as Content-Type: application/json"):
        check_json_type(content_type)


@pytest.mark.parametrize("start", [b"", b" \r\n\t", b"\xef\xbb\xbf"])
def test_white_space_and_a_mark_may_stand_before_an_object(start):
    assert OBJECT_START.match(start + b'{"image": ""}')


@pytest.mark.parametrize("body", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM{", b"GIF89a", b"[]"])
def test_no_image_begins_like_an_object(body):
    assert not OBJECT_START.match(body)


def texts(message: object) -> tuple[list[bytes], bool]:
    images, as_list = parse_json_images(json.dumps(message).encode())
    return [image.text for image in images], as_list


def test_one_image_or_a_list():
    assert texts({"image": "QUJD"}) == ([b"QUJD"], False)
    assert texts({"image": "QUJD", "images": None}) == ([b"QUJD"], False)
    assert texts({"images": ["QUJD"]}) == ([b"QUJD"], True)
    assert texts({"image": None, "images": ["a", "b"]}) == ([b"a", b"b"], True)


def test_escapes_of_json_are_resolved_as_other_languages_write_them():
    (image,), _ = parse_json_images(b'\xef\xbb\xbf{"image": "\\/9j\\u002b\\n4AA"}')
    assert image.text == b"/9j+\n4AA"


def test_text_that_is_no_base64_fails_only_when_its_turn_comes():
    assert texts({"images": ["QUJD", "Ü"]}) == ([b"QUJD", b"?"], True)


@pytest.mark.parametrize(
    ("message", "text", "parameter"),
    [
        ({}, "must have one member", None),
        ({"image": None}, "must have one member", None),
        ({"image": "a", "images": ["b"]}, "must have one member", None),
        ({"image": "a", "r": 16}, "unknown member 'r'; .* in the query", "r"),
        ({"inputs": []}, "unknown member 'inputs'", "inputs"),
        ({"image": 1}, "image must be a base64 string", "image"),
        ({"image": ["a"]}, "image must be a base64 string", "image"),
        ({"image": {"b64": "a"}}, "image must be a base64 string", "image"),
        ({"images": "a"}, "images must be a list", "images"),
        ({"images": []}, "at least one", "images"),
        ({"images": ["a", None]}, "images must be a list", "images"),
    ],
)
def test_a_wrong_member_is_named(message, text, parameter):
    with pytest.raises(InvalidParameter, match=text) as caught:
        texts(message)
    assert caught.value.extensions.get("parameter") == parameter


def test_a_repeated_member_is_refused():
    with pytest.raises(InvalidParameter, match="given twice"):
        parse_json_images(b'{"image": "a", "image": "b"}')


@pytest.mark.parametrize(
    "body", [b"{", b'{"image": "a}', b'{"image": "\xff"}', b'{"image": "a"} x', b'{"a":' * 900]
)
def test_what_is_not_json_is_refused(body):
    with pytest.raises(BadRequest, match="not valid JSON"):
        parse_json_images(body)


def test_the_number_of_images_is_limited():
    assert len(texts({"images": ["data:image/png;base64,QUJD"] * MAX_IMAGES})[0]) == MAX_IMAGES
    with pytest.raises(TooLarge, match="65 images"):
        texts({"images": ["a"] * (MAX_IMAGES + 1)})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["image", "images", "x"]), values, max_size=3)
    ),
    max_leaves=5,
)


@given(
    JSON_VALUES.map(lambda value: json.dumps({"images": value}).encode())
    | st.binary().map(b"{".__add__)
)
def test_any_body_is_images_or_refused(body):
    try:
        images, _ = parse_json_images(body)
    except RequestError as error:
        assert error.status in (400, 413, 422)
    else:
        assert images


@pytest.mark.parametrize("item", [b"[],", b"{},", b"1,", b"[", b'{"a":'])
def test_large_structures_are_refused_before_they_are_parsed(item):
    with pytest.raises(TooLarge, match="too many members"):
        parse_json_images(b'{"images": [' + item * 2000 + b"1]}")
