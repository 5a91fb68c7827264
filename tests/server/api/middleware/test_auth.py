from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from server.api.middleware.auth import ApiKeys, presented_keys

VISIBLE_TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@given(st.sets(VISIBLE_TEXT, max_size=5), VISIBLE_TEXT)
def test_exactly_the_configured_keys_are_known(configured, key):
    keys = ApiKeys(configured)
    assert (key.encode() in keys) == (key in configured)
    assert all(each.encode() in keys for each in configured)
    assert bool(keys) == bool(configured)
    assert b"" not in keys


def test_no_key_is_stored_in_clear_text():
    assert "secret" not in repr(vars(ApiKeys(["secret"])))


def keys_in(*headers: tuple[str, str]) -> list[bytes]:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return list(presented_keys(Headers(raw=raw)))


def test_a_key_may_be_in_either_header():
    assert keys_in(("authorization", "Bearer abc")) == [b"abc"]
    assert keys_in(("authorization", "bEARER  abc ")) == [b"abc"]
    assert keys_in(("x-api-key", "abc")) == [b"abc"]
    assert keys_in(("x-api-key", "\xff")) == [b"\xff"]


def test_all_presented_keys_are_found():
    headers = [("x-api-key", "a"), ("authorization", "Bearer b"), ("x-api-key", "c")]
    assert keys_in(*headers) == [b"b", b"a", b"c"]


def test_other_credentials_are_no_keys():
    assert keys_in(("authorization", "Basic abc"), ("cookie", "abc")) == []
