"""API keys, from the environment or a file: never a flag, which every process on the machine could read."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import ConfigError


class Secrets(BaseSettings):
    """Where the keys are. Without either, everyone may ask."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    api_keys: SecretStr | None = None
    api_keys_file: Path | None = None


class ClientSecrets(BaseSettings):
    """The one key that a client of ours sends, ``TOME_API_KEY``."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    api_key: SecretStr | None = None


def read_key(secrets: ClientSecrets, file: Path | None) -> str:
    """The client's key: the first line of ``file``, else ``TOME_API_KEY``, else none, ``""``.

    Raises:
        ConfigError: the file cannot be read, or what it holds could not stand in a header.
    """
    key = "" if secrets.api_key is None else secrets.api_key.get_secret_value()
    if file is not None:
        try:
            key = (file.read_text("utf-8").splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"cannot read the API key in {file}: {reason}") from None
    key = key.strip()
    if file is not None and not key:
        raise ConfigError(f"{file} holds no API key")
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigError("an API key may only have visible ASCII characters")
    return key


def read_keys(secrets: Secrets) -> tuple[str, ...]:
    """All keys: those of ``TOME_API_KEYS``, separated by commas, and the lines of ``TOME_API_KEYS_FILE``.

    Raises:
        ConfigError: the file cannot be read, a key could not stand in a header, or keys are asked
            for and there is none. No message repeats any of a key.
    """
    keys: list[str] = []
    if secrets.api_keys is not None:
        keys += secrets.api_keys.get_secret_value().split(",")
    if secrets.api_keys_file is not None:
        try:
            keys += secrets.api_keys_file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(
                f"cannot read TOME_API_KEYS_FILE, {secrets.api_keys_file}: {reason}"
            ) from None
    keys = [key for key in (key.strip() for key in keys) if key]
    if not keys and (secrets.api_keys is not None or secrets.api_keys_file is not None):
        raise ConfigError(
            "TOME_API_KEYS or TOME_API_KEYS_FILE is set but holds no key; unset it to let"
            " everyone in"
        )
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise ConfigError("an API key may only have visible ASCII characters")
    return tuple(keys)
