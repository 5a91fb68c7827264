from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.pipeline.base64_image import Base64Image, decode_base64
from server.errors import BadImage

ENCODERS = st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
PREFIXES = st.sampled_from([b"", b"data:image/png;base64,", b" DATA:;name=a.png;BASE64,\r\n"])


@given(content=st.binary(max_size=200), encode=ENCODERS, prefix=PREFIXES, padding=st.integers(0, 2))
def test_every_common_form_of_base64_gives_the_same_bytes(content, encode, prefix, padding):
    encoded = encode(content).rstrip(b"=\n")
    missing = min(padding, -len(encoded.replace(b"\n", b"")) % 4)
    assert decode_base64(prefix + encoded + b"=" * missing) == content


@given(st.binary(max_size=200))
def test_line_breaks_and_blanks_are_skipped(content):
    encoded = base64.b64encode(content).decode()
    spaced = "\t" + "\r\n ".join(encoded[start : start + 5] for start in range(0, len(encoded), 5))
    assert decode_base64(spaced.encode()) == content


@given(content=st.binary(max_size=200), start=st.sampled_from(["image/png; ", ";charset=utf-8;"]))
def test_a_data_url_may_be_escaped(content, start):
    escaped = quote(base64.b64encode(content), safe="")
    assert decode_base64(f"data:{start}base64,{escaped}".encode()) == content


@pytest.mark.parametrize(
    "text",
    [
        b"hello!",
        b"QUJDQ",
        b"QU=I",
        b"QQ==QQ==",
        b"\xff\xd8\xff\xe0",
        b"data:image/png;base64",
        b"data:image/svg+xml,<svg/>",
        b"https://example.org/cat.png",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(BadImage, match="not base64, nor a data URL"):
        Base64Image(text).decode()
