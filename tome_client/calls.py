"""Build the requests and parse the responses of each method, for both clients, without I/O."""

from __future__ import annotations

import array
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx

from tome_client.errors import BadAnswer, ProblemError, problem_from_members
from tome_client.pictures import encode
from tome_client.results import Classification, Model
from tome_client.retrying import RETRYABLE_STATUSES, Request, Retry, RetryLoop, Steps

if TYPE_CHECKING:
    from tome_client.pictures import ImageLike

T = TypeVar("T")

# What becomes of the windows of a sound or a video.
Windows = Literal["first", "mean", "each"]

# Limits of a request with several images. A single image may exceed the limit in bytes.
MAX_IMAGES = 16
MAX_BYTES = 8_000_000
RAW_FEATURES = {"Accept": "application/octet-stream"}


class Calls:
    """The steps of each method of `tome_client.Client`.

    Args:
        timeout: timeout in seconds of each phase of a request.
        retry: retry policy of each request.
    """

    def __init__(self, timeout: float, retry: Retry) -> None:
        self._timeout = timeout
        self._retry = retry

    def classify(self, image: ImageLike, params: dict[str, str]) -> Steps:
        """Steps that return a `Classification`."""
        response = yield from self._post("/classify", params, content=encode(image))
        return parse_json(response, Classification.of)

    def classify_many(self, images: Iterable[ImageLike], params: dict[str, str]) -> Steps:
        """Steps that return a `Classification` or `ProblemError` for each image."""
        results: list[Classification | ProblemError] = []
        for chunk in chunks(map(encode, images)):
            results += yield from self._classify_chunk(chunk, params)
        return results

    def embed(self, image: ImageLike, params: dict[str, str]) -> Steps:
        """Steps that return the features of one image, or of each window."""
        if wants_each_window(params):
            response = yield from self._post("/embed", params, content=encode(image))
            return parse_json(response, parse_window_features)
        response = yield from self._post(
            "/embed", params, content=encode(image), headers=RAW_FEATURES
        )
        return parse_features(response.content)

    def embed_many(self, images: Iterable[ImageLike], params: dict[str, str]) -> Steps:
        """Steps that return a list with the features of each image."""
        rows: list[Any] = []
        if wants_each_window(params):
            # Rows of several files in one answer would not say where one of them ends.
            for image in images:
                rows.append((yield from self.embed(image, params)))
            return rows
        for chunk in chunks(map(encode, images)):
            response = yield from self._post(
                "/embed", params, files=multipart_form(chunk), headers=RAW_FEATURES
            )
            row_bytes = len(response.content) // len(chunk)
            for index in range(len(chunk)):
                start = index * row_bytes
                rows.append(parse_features(response.content[start : start + row_bytes]))
        return rows

    def visualize(self, image: ImageLike, params: dict[str, str]) -> Steps:
        """Steps that return a PNG file."""
        response = yield from self._post("/visualize", params, content=encode(image))
        return response.content

    def models(self) -> Steps:
        """Steps that return a list of `Model`."""
        request = Request("GET", "/models", self._timeout)
        response = yield from RetryLoop(self._retry).request(request)
        return parse_json(response, parse_models)

    def ready(self) -> Steps:
        """Steps that return whether the server is ready."""
        outcome = yield Request("GET", "/readyz", self._timeout)
        return isinstance(outcome, httpx.Response) and outcome.is_success

    def _post(self, path: str, params: dict[str, str], **options: Any) -> Steps:
        """Steps that return the response to a POST request, with retries."""
        request = Request("POST", path, self._timeout, params, **options)
        response = yield from RetryLoop(self._retry).request(request)
        return response

    def _classify_chunk(self, chunk: Sequence[bytes], params: dict[str, str]) -> Steps:
        """Classify ``chunk`` in one request. Retry the images that the server rejects."""
        retry_loop = RetryLoop(self._retry)
        results = dict[int, Classification | ProblemError]()
        pending = list(range(len(chunk)))
        while pending:
            files = multipart_form([chunk[index] for index in pending])
            request = Request("POST", "/classify", self._timeout, params, files=files)
            response = yield from retry_loop.request(request)
            results |= parse_json(response, partial(parse_results, pending))
            pending = [
                index
                for index in pending
                if getattr(results[index], "status", 200) in RETRYABLE_STATUSES
            ]
            try:
                if pending:
                    rejection = results[pending[0]]
                    assert isinstance(rejection, ProblemError)
                    yield from retry_loop.back_off(rejection, None)
            except ProblemError:
                break  # No attempts are left: return the rejections.
        return [results[index] for index in range(len(chunk))]


def parameters(**values: object) -> dict[str, str]:
    """Return the query parameters of a request, less those that are None.

    Numbers of a list are joined by commas; truth values are ``true`` and ``false``.
    """
    texts = {}
    for name, value in values.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            texts[name] = ",".join(map(str, value))
        elif isinstance(value, bool):
            texts[name] = str(value).lower()
        elif value is not None:
            texts[name] = str(value)
    return texts


def wants_each_window(params: dict[str, str]) -> bool:
    """Return whether the result of every window is requested."""
    return params.get("windows") == "each"


def chunks(bodies: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Split ``bodies`` into lists of at most `MAX_IMAGES` items and `MAX_BYTES` bytes."""
    chunk: list[bytes] = []
    for body in bodies:
        if chunk and (len(chunk) == MAX_IMAGES or sum(map(len, chunk)) + len(body) > MAX_BYTES):
            yield chunk
            chunk = []
        chunk.append(body)
    if chunk:
        yield chunk


def multipart_form(bodies: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """Return a multipart form with one file for each of ``bodies``."""
    return [("file", (f"{index}", body)) for index, body in enumerate(bodies)]


def parse_results(
    indices: Sequence[int], body: dict[str, Any]
) -> dict[int, Classification | ProblemError]:
    """Parse the results of a multipart request. Map ``indices`` to them."""
    return dict(zip(indices, map(parse_result, body["results"]), strict=True))


def parse_result(body: dict[str, Any]) -> Classification | ProblemError:
    """Parse one result of a multipart request."""
    if "status" in body:
        return problem_from_members(body["status"], body)
    return Classification.of(body)


def parse_models(body: dict[str, Any]) -> list[Model]:
    """Parse the response of ``/models``."""
    return [Model.of(model) for model in body["models"]]


def parse_json(response: httpx.Response, parse: Callable[[Any], T]) -> T:
    """Apply ``parse`` to the JSON of a response. Raises `BadAnswer`."""
    try:
        return parse(response.json())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadAnswer(f"unexpected response from {response.url}") from error


def parse_features(content: bytes) -> Any:
    """Parse little-endian float32 features. Raises `BadAnswer`.

    They become a numpy array, or an ``array.array`` if numpy is not installed.
    """
    if not content or len(content) % 4:
        raise BadAnswer(f"expected float32 features, got {len(content)} bytes")
    try:
        import numpy as np
    except ImportError:
        values = array.array("f", content)
        if sys.byteorder == "big":
            values.byteswap()
        return values
    return np.frombuffer(content, "<f4").astype(np.float32)


def parse_window_features(body: dict[str, Any]) -> Any:
    """Parse the features ``(windows, D)`` of every window of one sound or video.

    They become a numpy array, or a list of ``array.array`` if numpy is not installed.
    """
    rows = [window["embedding"] for window in body["windows"]]
    try:
        import numpy as np
    except ImportError:
        return [array.array("f", row) for row in rows]
    return np.array(rows, np.float32)
