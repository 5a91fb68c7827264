import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.pipeline.multipart import (
    MAX_HEADERS,
    MAX_PARTS,
    FileParts,
    has_file_name,
)
from server.errors import BadImage, TooLarge

TYPE = "multipart/form-data; boundary=XX"


def part(content: bytes, disposition: str = 'form-data; name="a"; filename="a.png"') -> bytes:
    return b"--XX\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def parse(body: bytes, step: int = 1 << 20) -> list[bytes]:
    parts = FileParts(TYPE)
    for start in range(0, len(body), step):
        parts.feed(body[start : start + step])
    return parts.finish()


@given(files=st.lists(st.binary(max_size=200), min_size=1, max_size=5), step=st.integers(1, 100))
def test_files_are_complete_however_the_body_is_split(files, step):
    files = [content.replace(b"--XX", b"") for content in files]
    assert parse(b"".join(part(content) for content in files) + b"--XX--\r\n", step) == files


def test_every_part_with_a_file_name_is_a_file():
    body = (
        part(b"text", 'form-data; name="file"')
        + part(b"1", 'form-data; name="x"; filename="1"')
        + part(b"", 'form-data; name="y"; filename=""')
        + part(b"no disposition at all").replace(b"Content-Disposition", b"X-Other")
        + part(b"2", 'attachment; filename="2"').replace(
            b"Content-Disposition", b"CONTENT-DISPOSITION"
        )
    )
    assert parse(body + b"--XX--\r\n") == [b"1", b"", b"2"]


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        ("form-data; name=a; filename=a.png", True),
        ('form-data; name="a"; FileName = "a.png"', True),
        ("form-data; name=\"a\"; filename*=utf-8''%D1%84.png", True),
        ('form-data; name="a"; filename*0="a"; filename*1=".png"', True),
        ('form-data;filename="a;\\"b.png";name="a"', True),
        ('form-data; filename="C:\\pictures\\"', True),
        ('form-data; filename="ф.png"', True),
        (f'form-data; name="a"; filename="{"long" * 10_000}.png"', True),
        ('form-data; name="a"', False),
        ('form-data; name="a; filename=b.png"', False),
        ('form-data; name="\\"; filename=b"', False),
        ('form-data; name="a"; my-filename="b.png"', False),
        ("form-data; name=filename", False),
        ("", False),
    ],
)
def test_a_file_name_in_every_form_makes_a_file(disposition, expected):
    assert has_file_name(disposition.encode()) is expected
    if expected:
        assert parse(part(b"1", disposition) + b"--XX--\r\n") == [b"1"]


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"image/png", [b"1", b"2"]),
        (b"IMAGE/JPEG; x=y", [b"1", b"2"]),
        (b"application/octet-stream", [b"1", b"2"]),
        (b"text/plain", [b"2"]),
        (b"application/json", [b"2"]),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_a_part_without_a_file_name_is_a_file_by_its_content_type(content_type, expected, order):
    headers = [b'Content-Disposition: form-data; name="a"', b"Content-Type:\t" + content_type]
    unnamed = b"--XX\r\n" + b"\r\n".join(headers[::order]) + b"\r\n\r\n1\r\n"
    assert parse(unnamed + part(b"2") + b"--XX--") == expected


PREAMBLES = [
    b"",
    b"\r\n",
    b"This is a multi-part message.\r\n",
    b"--\r\n-x\r\n--X\r\n",
    b"--XX-\r\n",
]
ENDS = [b"--XX--", b"--XX--\r\n", b"--XX--  \r\n", b"--XX--\r\nepilogue\r\n--XX\r\n\r\n3\r\n--XX--"]


@pytest.mark.parametrize("preamble", PREAMBLES)
@pytest.mark.parametrize("end", ENDS)
def test_what_surrounds_the_parts_is_ignored(preamble, end):
    body = preamble + part(b"1") + part(b"2") + end
    for step in (1, 7, 1000):
        assert parse(body, step) == [b"1", b"2"]


def test_a_part_may_have_many_headers_and_long_ones():
    lines = b"".join(b"X-%d: %b\r\n" % (i, b"x" * 60_000) for i in range(MAX_HEADERS - 1))
    assert parse(part(b"1").replace(b"--XX\r\n", b"--XX\r\n" + lines) + b"--XX--") == [b"1"]
    too_many = b"--XX\r\n" + lines + b"A: 1\r\nB: 2\r\n\r\n1\r\n--XX--"
    with pytest.raises(BadImage, match=f"more than {MAX_HEADERS} headers"):
        parse(too_many)


@pytest.mark.parametrize(
    "body", [b"", b"--XX", b"hello", part(b"1"), part(b"1") + b"--XX", b"--XX\r\nbad\r\n\r\n1"]
)
def test_a_malformed_or_incomplete_body_is_refused(body):
    with pytest.raises(BadImage, match="malformed"):
        parse(body)


def test_a_body_without_a_file_is_refused():
    with pytest.raises(BadImage, match="no file"):
        parse(part(b"text", 'form-data; name="file"') + b"--XX--\r\n")


def test_a_content_type_without_a_valid_boundary_is_refused():
    for content_type in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/a; boundary={'x' * 999}",
    ):
        with pytest.raises(BadImage, match="boundary"):
            FileParts(content_type)


def test_the_number_of_parts_is_limited():
    assert len(parse(part(b"1") * MAX_PARTS + b"--XX--\r\n")) == MAX_PARTS
    with pytest.raises(TooLarge, match=str(MAX_PARTS)):
        parse(part(b"1") * (MAX_PARTS + 1))


def test_the_size_of_a_parts_header_is_limited():
    with pytest.raises(BadImage, match="malformed"):
        parse(b"--XX\r\nX: " + b"x" * 100_000)
