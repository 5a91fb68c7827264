"""What the model under load takes, as ``/models`` says."""

from __future__ import annotations

import contextlib
import http.client
import json
from urllib.parse import urlsplit

from server.media.modality import Modality
from server.system.unix_http import connection_to, socket_path


def served_modality(url: str, model: str, key: str, timeout: float) -> Modality:
    """Return what ``model``, or else the first model of the server at ``url``, takes.

    It is images where nothing says otherwise: there is no answer, a refusal, or no such model. The
    load's own requests then find out why.

    Args:
        key: API key; empty for none.
        timeout: seconds to wait for an answer.
    """
    try:
        status, body = _get(url, key, timeout)
    except (OSError, http.client.HTTPException, ValueError):
        return Modality.IMAGE
    if status != 200:
        return Modality.IMAGE
    try:
        models = json.loads(body)["models"]
        served = {each["name"]: each.get("modality", Modality.IMAGE) for each in models}
        return Modality(served.get(model) or next(iter(served.values())))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return Modality.IMAGE


def _get(url: str, key: str, timeout: float) -> tuple[int, bytes]:
    """Return status and body of ``/models``."""
    prefix = "" if socket_path(url) is not None else urlsplit(url).path.rstrip("/")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with contextlib.closing(connection_to(url, timeout)) as connection:
        connection.request("GET", f"{prefix}/models", headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
