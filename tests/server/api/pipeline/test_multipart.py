import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.pipeline.multipart import MAX_PARTS, FileParts, is_multipart
from server.errors import BadImage, TooLarge

TYPE = "multipart/form-data; boundary=XX"


def part(content: bytes, disposition: str = 'form-data; name="a"; filename="a.png"') -> bytes:
    return b"--XX\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def parse(body: bytes, step: int = 1 << 20) -> list[bytes]:
    parts = FileParts(TYPE)
    for start in range(0, len(body), step):
        parts.feed(body[start : start + step])
    return parts.finish()


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data; boundary=x", "Multipart/Mixed", "multipart/form-data"]
)
def test_multipart_content_types(content_type):
    assert is_multipart(content_type)


@pytest.mark.parametrize(
    "content_type", [None, "", "image/png", "application/x-www-form-urlencoded", "nonsense"]
)
def test_other_content_types_are_images(content_type):
    assert not is_multipart(content_type)


@given(files=st.lists(st.binary(max_size=200), min_size=1, max_size=5), step=st.integers(1, 100))
def test_files_are_complete_however_the_body_is_split(files, step):
    files = [content.replace(b"--XX", b"") for content in files]
    assert parse(b"".join(part(content) for content in files) + b"--XX--\r\n", step) == files


def test_every_part_with_a_file_name_is_a_file_and_no_other():
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
