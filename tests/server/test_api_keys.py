"""API keys come from the environment or a file, and are never shown."""

import pytest

from server.api_keys import ClientSecrets, Secrets, read_client_key, read_server_keys
from server.errors import ConfigError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("TOME_API_KEYS", "TOME_API_KEYS_FILE", "TOME_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_without_settings_there_are_no_keys(monkeypatch):
    assert read_server_keys(Secrets()) == ()
    monkeypatch.setenv("TOME_API_KEYS", "")
    assert read_server_keys(Secrets()) == ()


def test_keys_come_from_the_environment_and_from_a_file(monkeypatch, tmp_path):
    file = tmp_path / "keys"
    file.write_text("three\r\n\n  four  \n")
    monkeypatch.setenv("TOME_API_KEYS", "one, two")
    monkeypatch.setenv("TOME_API_KEYS_FILE", str(file))
    assert read_server_keys(Secrets()) == ("one", "two", "three", "four")


@pytest.mark.parametrize("keys", [" ", ",", " , ,"])
def test_a_setting_without_keys_does_not_open_the_server(monkeypatch, keys):
    monkeypatch.setenv("TOME_API_KEYS", keys)
    with pytest.raises(ConfigError, match="holds no key"):
        read_server_keys(Secrets())


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", None])
def test_a_file_without_keys_does_not_open_the_server(monkeypatch, tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("TOME_API_KEYS_FILE", str(file))
    with pytest.raises(ConfigError, match="TOME_API_KEYS_FILE"):
        read_server_keys(Secrets())


@pytest.mark.parametrize("key", ["hidden key", "hidden\tkey", "hiddenkäy"])
def test_a_key_that_no_header_can_hold_is_refused_but_not_shown(monkeypatch, key):
    monkeypatch.setenv("TOME_API_KEYS", f"fine,{key}")
    with pytest.raises(ConfigError) as caught:
        read_server_keys(Secrets())
    assert "hidden" not in str(caught.value)
    assert "hidden" not in repr(Secrets())


def test_a_client_has_one_key_from_a_file_or_the_environment(monkeypatch, tmp_path):
    assert read_client_key(ClientSecrets(), None) == ""
    monkeypatch.setenv("TOME_API_KEY", "one")
    assert read_client_key(ClientSecrets(), None) == "one"
    file = tmp_path / "key"
    file.write_text(" two \nthree\n")
    assert read_client_key(ClientSecrets(), file) == "two"
    for content, message in (
        ("", "holds no API key"),
        ("t\u00fc", "visible ASCII"),
        ("a b", "visible ASCII"),
    ):
        file.write_text(content, "utf-8")
        with pytest.raises(ConfigError, match=message) as caught:
            read_client_key(ClientSecrets(), file)
        assert "a b" not in str(caught.value)
