"""The page of all settings is what the settings say."""

from typing import Any

from pydantic import Field

from server.api_keys import ClientSecrets, Secrets
from server.settings import Settings
from tests.docs import configuration


def test_the_page_is_up_to_date():
    assert configuration.FILE.read_text() == configuration.page(), "run `make docs`"


def test_everything_that_is_read_is_there():
    page = configuration.FILE.read_text()
    for name in (*Settings.model_fields, *Secrets.model_fields, *ClientSecrets.model_fields):
        assert f"`TOME_{name.upper()}`" in page, name
    for name, field in Settings.model_fields.items():
        assert f"`--{name.replace('_', '-')}`" in page
        assert configuration.what(field), name


def test_bounds_are_told():
    fields: dict[str, Any] = {**Settings.model_fields, "none": Field(None, description="x | y.")}
    assert configuration.allowed(fields["port"]) == "0 to 65535"
    assert configuration.allowed(fields["metrics_port"]) == "1 to 65535"
    assert configuration.allowed(fields["body_timeout"]) == "more than 0"
    assert configuration.allowed(fields["log_level"]) == "`debug`, `info`, `warning`, `error`"
    assert configuration.what(fields["none"]) == "x \\| y"
    assert configuration.default(fields["levels"]) == "`0,4,8,12,16`"
    assert configuration.default(fields["none"]) == ""
