"""Every error of the server has a stable type, and the OpenAPI document describes it."""

import json

import pytest

from server import errors
from server.api.contract.problem_details import error_responses, problem_of, problem_response
from server.errors import InferenceFailed, Overloaded, Refusal, RequestError, TooLarge

ERROR_TYPES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RequestError)
]


@pytest.mark.parametrize("error_type", ERROR_TYPES, ids=lambda error_type: error_type.__name__)
def test_every_error_has_all_members_of_a_problem(error_type):
    extensions = {"reason": Refusal.QUEUE_FULL} if error_type is Overloaded else {}
    response = problem_response(error_type("the reason", **extensions), "abc")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == error_type.status
    assert json.loads(bytes(response.body)) == {
        "type": f"urn:tome:problem:{error_type.slug}",
        "title": error_type.title,
        "status": error_type.status,
        "detail": "the reason",
        "instance": "urn:tome:request:abc",
        **extensions,
    }


def test_no_two_errors_have_the_same_type():
    assert len({error_type.slug for error_type in ERROR_TYPES}) == len(ERROR_TYPES)


def test_a_response_has_the_headers_and_extensions_of_its_error():
    error = Overloaded("full", retry_after=0.3, reason=Refusal.QUEUE_FULL)
    response = problem_response(error, headers={"Allow": "POST"})
    assert response.headers["retry-after"] == "1"
    assert response.headers["allow"] == "POST"
    assert json.loads(bytes(response.body))["reason"] == "queue-full"


def test_a_problem_has_the_extensions_of_its_error():
    assert problem_of(TooLarge("", limit=5)).model_dump()["limit"] == 5


def test_the_instance_is_a_valid_uri_for_any_request_id():
    assert problem_of(TooLarge(""), 'a"<b>/%').instance == "urn:tome:request:a%22%3Cb%3E%2F%25"


@pytest.mark.parametrize("path", ["/v2", "/v2/models/small/infer"])
def test_errors_below_v2_follow_the_open_inference_protocol(path):
    response = problem_response(InferenceFailed("the reason", index=3), "abc", path=path)
    assert response.headers["content-type"] == "application/json"
    assert json.loads(bytes(response.body)) == {"error": "image 3: the reason"}


def test_a_path_that_only_begins_like_v2_gets_a_problem():
    response = problem_response(InferenceFailed("the reason"), path="/v20")
    assert response.headers["content-type"] == "application/problem+json"


def test_a_documented_status_lists_the_titles_of_its_errors():
    description = error_responses(503)[503]["description"]
    assert description == "The server cannot take this request now; The model process was lost"
