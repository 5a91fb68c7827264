"""API keys, from the environment or a file.

There is no flag for them: every process on the machine could read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import ConfigError

_KEY = re.compile(r"[!-~]+")  # visible ASCII, as a header allows
_INVALID_KEY = "an API key may only have visible ASCII characters"


class Secrets(BaseSettings):
    """Where the server's keys are. Without API keys the server is open to everyone."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    api_keys: SecretStr | None = None
    api_keys_file: Path | None = None
    admin_key: SecretStr | None = None
    admin_key_file: Path | None = None


@dataclass(frozen=True)
class ServerKeys:
    """The keys of a server.

    Attributes:
        api: of all paths but /admin; without any, every request passes.
        admin: of /admin; without any, there are no such paths.
    """

    api: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()


class ClientSecrets(BaseSettings):
    """The key that `tome-serve load` sends, ``TOME_API_KEY``."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    api_key: SecretStr | None = None


def read_client_key(secrets: ClientSecrets, file: Path | None) -> str:
    """Return the client's key: the first line of ``file``, else ``TOME_API_KEY``, else ``""``.

    Raises:
        ConfigError: the file cannot be read or holds no key, or a header cannot hold the key.
    """
    if file is not None:
        key = _first_line(file)
    elif secrets.api_key is not None:
        key = secrets.api_key.get_secret_value().strip()
    else:
        key = ""
    if key and not _KEY.fullmatch(key):
        raise ConfigError(_INVALID_KEY)
    return key


def _first_line(file: Path) -> str:
    """Return the key in ``file``. Raises `ConfigError`."""
    lines = _read_lines(file, f"the API key in {file}")
    key = lines[0].strip() if lines else ""
    if not key:
        raise ConfigError(f"{file} holds no API key")
    return key


def read_keys(secrets: Secrets) -> ServerKeys:
    """Return all keys of the server. Raises `ConfigError` as `read_server_keys` does."""
    return ServerKeys(read_server_keys(secrets), _read_admin_keys(secrets))


def _read_admin_keys(secrets: Secrets) -> tuple[str, ...]:
    """Return the keys of /admin: ``TOME_ADMIN_KEY``, and the first line of its file."""
    keys = []
    if secrets.admin_key is not None:
        keys.append(secrets.admin_key.get_secret_value().strip())
    if secrets.admin_key_file is not None:
        keys.append(_first_line(secrets.admin_key_file))
    if not all(_KEY.fullmatch(key) for key in keys):
        raise ConfigError(f"TOME_ADMIN_KEY: {_INVALID_KEY}, and at least one")
    return tuple(keys)


def read_server_keys(secrets: Secrets) -> tuple[str, ...]:
    """Return the API keys of the server.

    They are those of ``TOME_API_KEYS``, separated by commas, and the lines of
    ``TOME_API_KEYS_FILE``.

    Raises:
        ConfigError: the file cannot be read, a header cannot hold a key, or a setting is there but
            no key. No message repeats any of a key.
    """
    if secrets.api_keys is None and secrets.api_keys_file is None:
        return ()
    candidates: list[str] = []
    if secrets.api_keys is not None:
        candidates += secrets.api_keys.get_secret_value().split(",")
    if secrets.api_keys_file is not None:
        file = secrets.api_keys_file
        candidates += _read_lines(file, f"TOME_API_KEYS_FILE, {file}")
    stripped = [candidate.strip() for candidate in candidates]
    keys = [key for key in stripped if key]
    if not keys:
        raise ConfigError(
            "TOME_API_KEYS or TOME_API_KEYS_FILE is set but holds no key; unset it to allow"
            " requests without a key"
        )
    if not all(_KEY.fullmatch(key) for key in keys):
        raise ConfigError(_INVALID_KEY)
    return tuple(keys)


def _read_lines(file: Path, name: str) -> list[str]:
    """Return the lines of ``file``. Raises `ConfigError` if it cannot be read."""
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"cannot read {name}: {reason}") from None
