from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from server.api.middleware.auth import Keys, presented

VISIBLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@given(st.sets(VISIBLE, max_size=5), VISIBLE)
def test_a_key_is_known_if_it_is_one_of_them(keys, asked):
    known = Keys(keys)
    assert (asked.encode() in known) == (asked in keys)
    assert all(key.encode() in known for key in keys)
    assert bool(known) == bool(keys)
    assert b"" not in known


def test_nothing_of_a_key_is_kept():
    assert "secret" not in repr(vars(Keys(["secret"])))


def headers(*pairs):
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def test_keys_come_in_two_headers():
    assert list(presented(headers(("authorization", "Bearer abc")))) == [b"abc"]
    assert list(presented(headers(("authorization", "bEARER  abc ")))) == [b"abc"]
    assert list(presented(headers(("x-api-key", "abc")))) == [b"abc"]
    assert list(
        presented(headers(("x-api-key", "a"), ("authorization", "Bearer b"), ("x-api-key", "c")))
    ) == [
        b"b",
        b"a",
        b"c",
    ]
    assert list(presented(headers(("authorization", "Basic abc"), ("cookie", "abc")))) == []
    assert list(presented(headers(("x-api-key", "\xff")))) == [b"\xff"]
