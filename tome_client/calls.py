"""What each method asks and what it makes of the answer, for both clients: steps without any input or output."""

from __future__ import annotations

import array
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from tome_client.errors import BadAnswer, ProblemError, problem
from tome_client.pictures import encode
from tome_client.results import Classification, Model
from tome_client.retrying import RETRIED, Persistence, Request, Retry, Steps

if TYPE_CHECKING:
    from tome_client.pictures import ImageLike

T = TypeVar("T")

# A request of several images has so many at most, and not many more bytes unless one image alone
# has.
MANY = 16
MANY_BYTES = 8_000_000
RAW = {"Accept": "application/octet-stream"}


class Calls:
    """The steps of each method; see `tome_client.Client` for what they do.

    Args:
        timeout: seconds that each part of a request may take.
    """

    def __init__(self, timeout: float, retry: Retry) -> None:
        self._timeout = timeout
        self._retry = retry

    def classify(self, image: ImageLike, params: dict[str, str]) -> Steps:
        """Steps to a `Classification`."""
        response = yield from self._post("/classify", params, content=encode(image))
        return understood(response, Classification.of)

    def classify_many(self, images: Iterable[ImageLike], params: dict[str, str]) -> Steps:
        """Steps to a list of `Classification` or `ProblemError`."""
        results: list[Classification | ProblemError] = []
        for chunk in chunks(map(encode, images)):
            results += yield from self._classify_chunk(chunk, params)
        return results

    def embed(self, image: ImageLike, params: dict[str, str]) -> Steps:
        """Steps to the features of one image."""
        response = yield from self._post("/embed", params, content=encode(image), headers=RAW)
        return floats(response.content)

    def embed_many(self, images: Iterable[ImageLike], params: dict[str, str]) -> Steps:
        """Steps to the features of several images, as a list."""
        rows: list[Any] = []
        for chunk in chunks(map(encode, images)):
            response = yield from self._post("/embed", params, files=form(chunk), headers=RAW)
            size = len(response.content) // len(chunk)
            rows += [
                floats(response.content[at * size : (at + 1) * size]) for at in range(len(chunk))
            ]
        return rows

    def visualize(self, image: ImageLike, params: dict[str, str]) -> Steps:
        """Steps to a PNG."""
        response = yield from self._post("/visualize", params, content=encode(image))
        return response.content

    def models(self) -> Steps:
        """Steps to a list of `Model`."""
        response = yield from Persistence(self._retry).request(
            Request("GET", "/models", self._timeout)
        )
        return understood(response, lambda answer: [Model.of(model) for model in answer["models"]])

    def ready(self) -> Steps:
        """Steps to a bool."""
        reply = yield Request("GET", "/readyz", self._timeout)
        return isinstance(reply, httpx.Response) and reply.is_success

    def _post(self, path: str, params: dict[str, str], **more: Any) -> Steps:
        response = yield from Persistence(self._retry).request(
            Request("POST", path, self._timeout, params, **more)
        )
        return response

    def _classify_chunk(self, chunk: Sequence[bytes], params: dict[str, str]) -> Steps:
        """As one request; those that the server had no room for are sent again."""
        persistence = Persistence(self._retry)
        found = dict[int, Classification | ProblemError]()
        left = list(range(len(chunk)))
        while left:
            files = form([chunk[index] for index in left])
            response = yield from persistence.request(
                Request("POST", "/classify", self._timeout, params, files=files)
            )
            found |= understood(response, partial(results_of, left))
            left = [index for index in left if getattr(found[index], "status", 200) in RETRIED]
            try:
                if left:
                    refusal = found[left[0]]
                    assert isinstance(refusal, ProblemError)
                    yield from persistence.again(refusal, None)
            except ProblemError:
                break  # no further attempt: the refusals are the results
        return [found[index] for index in range(len(chunk))]


def parameters(**given: object) -> dict[str, str]:
    """The query of a request: what is None is left out, and a list of numbers is a schedule by blocks."""
    texts = {}
    for name, value in given.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            texts[name] = ",".join(map(str, value))
        elif value is not None:
            texts[name] = str(value)
    return texts


def chunks(bodies: Iterable[bytes]) -> Iterator[list[bytes]]:
    """``bodies`` in lists of `MANY` at most, each begun anew before it has more than `MANY_BYTES`."""
    chunk: list[bytes] = []
    for body in bodies:
        if chunk and (len(chunk) == MANY or sum(map(len, chunk)) + len(body) > MANY_BYTES):
            yield chunk
            chunk = []
        chunk.append(body)
    if chunk:
        yield chunk


def form(bodies: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """A multipart form with a file for each of ``bodies``."""
    return [("file", (f"{index}", body)) for index, body in enumerate(bodies)]


def results_of(
    indices: Sequence[int], answer: dict[str, Any]
) -> dict[int, Classification | ProblemError]:
    """The results of a multipart request, by ``indices``."""
    return dict(zip(indices, map(result, answer["results"]), strict=True))


def result(answer: dict[str, Any]) -> Classification | ProblemError:
    """One result of a multipart request."""
    return problem(answer["status"], answer) if "status" in answer else Classification.of(answer)


def understood(response: httpx.Response, make: Callable[[Any], T]) -> T:
    """What ``make`` makes of a response's JSON. Raises `BadAnswer`."""
    try:
        return make(response.json())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadAnswer(
            f"{response.url} answered something else than this client expects"
        ) from error


def floats(content: bytes) -> Any:
    """Little-endian float32 as a numpy array; as an ``array.array`` where there is no numpy. Raises `BadAnswer`."""
    if not content or len(content) % 4:
        raise BadAnswer(f"{len(content)} bytes are no features")
    try:
        import numpy as np
    except ImportError:
        values = array.array("f", content)
        if sys.byteorder == "big":
            values.byteswap()
        return values
    return np.frombuffer(content, "<f4").astype(np.float32)
