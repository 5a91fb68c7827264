"""Every error of the server has a stable type and is described in the OpenAPI document's terms."""

import json

import pytest

from server import errors
from server.api.contract.problem_details import describe, document, respond
from server.errors import Overloaded, RequestError, TooLarge

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error(kind):
    response = respond(kind("what was wrong"), "abc")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == kind.status
    assert json.loads(response.body) == {
        "type": f"urn:tome:problem:{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": "what was wrong",
        "instance": "urn:tome:request:abc",
    }


def test_types_differ():
    assert len({kind.slug for kind in KINDS}) == len(KINDS)


def test_extensions_and_headers():
    response = respond(
        Overloaded("full", retry_after=0.3, reason="queue-full"), headers={"Allow": "POST"}
    )
    assert response.headers["retry-after"] == "1"
    assert response.headers["allow"] == "POST"
    assert json.loads(response.body)["reason"] == "queue-full"
    assert describe(TooLarge("", limit=5)).model_dump()["limit"] == 5


def test_instance_is_a_uri_whatever_the_id():
    assert describe(TooLarge(""), 'a"<b>/%').instance == "urn:tome:request:a%22%3Cb%3E%2F%25"


def test_document():
    assert (
        document(503)[503]["description"]
        == "The server cannot take this request now; The model process was lost"
    )
