"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from tome_client.calls import Calls, parameters
from tome_client.results import Classification, Model
from tome_client.retrying import Pause, Retry, Steps

if TYPE_CHECKING:
    from tome_client.errors import ProblemError
    from tome_client.pictures import ImageLike

R = int | str | Sequence[int] | None


class Client:
    """Asks one server. Threads may share it.

    Args:
        url: of the server.
        api_key: where the server asks for one.
        timeout: seconds that each part of a request (to connect, to send, to wait for the answer)
            may take.
        retry: how persistently to ask where the server has no room or cannot be reached.

    All methods raise what `tome_client.errors` lists. An image is bytes, a path, a file or a Pillow
    image. ``r`` is a number, one a block, the text of a schedule (``"16:-1"``), or ``"auto"``: the
    server merges no more than it takes to meet ``deadline_ms``, with no level above ``r_max`` and
    none whose accuracy is below ``min_accuracy`` percent. ``model`` is a name, default the server's
    first model.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retry: Retry | None = None,
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=url, headers=headers)
        self._calls = Calls(timeout, retry or Retry())

    def classify(
        self,
        image: ImageLike,
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        top_k: int | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
    ) -> Classification:
        """The best ``top_k`` classes of an image, within ``deadline_ms`` milliseconds from its arrival."""
        query = parameters(
            r=r,
            r_max=r_max,
            min_accuracy=min_accuracy,
            top_k=top_k,
            deadline_ms=deadline_ms,
            model=model,
        )
        found: Classification = self._run(self._calls.classify(image, query))
        return found

    def classify_many(
        self,
        images: Iterable[ImageLike],
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        top_k: int | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
    ) -> list[Classification | ProblemError]:
        """The same of several images, in order, a few in each request. One that fails has its error in its place."""
        query = parameters(
            r=r,
            r_max=r_max,
            min_accuracy=min_accuracy,
            top_k=top_k,
            deadline_ms=deadline_ms,
            model=model,
        )
        found: list[Classification | ProblemError] = self._run(
            self._calls.classify_many(images, query)
        )
        return found

    def embed(
        self,
        image: ImageLike,
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
    ) -> Any:
        """The pooled features ``(D,)`` of an image: a float32 numpy array, or an ``array.array`` without numpy."""
        query = parameters(
            r=r, r_max=r_max, min_accuracy=min_accuracy, deadline_ms=deadline_ms, model=model
        )
        return self._run(self._calls.embed(image, query))

    def embed_many(
        self,
        images: Iterable[ImageLike],
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
    ) -> list[Any]:
        """The same of several images, in order, a few in each request. One that fails fails all."""
        query = parameters(
            r=r, r_max=r_max, min_accuracy=min_accuracy, deadline_ms=deadline_ms, model=model
        )
        found: list[Any] = self._run(self._calls.embed_many(images, query))
        return found

    def visualize(
        self,
        image: ImageLike,
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
    ) -> bytes:
        """A picture of what was merged, as a PNG file."""
        query = parameters(
            r=r, r_max=r_max, min_accuracy=min_accuracy, deadline_ms=deadline_ms, model=model
        )
        found: bytes = self._run(self._calls.visualize(image, query))
        return found

    def models(self) -> list[Model]:
        """The models that are served, the default one first, and what each ``r`` costs and gives."""
        found: list[Model] = self._run(self._calls.models())
        return found

    def ready(self) -> bool:
        """Whether the server takes work now; asks once."""
        found: bool = self._run(self._calls.ready())
        return found

    def close(self) -> None:
        """Close all connections; leaving a ``with`` block does so too."""
        self._http.close()

    def __enter__(self) -> Self:
        """Nothing is opened before it is needed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `close`."""
        self.close()

    def _run(self, steps: Steps) -> Any:
        """Carry out ``steps``; what they come to."""
        reply: httpx.Response | httpx.TransportError | None = None
        try:
            while True:
                step = steps.send(reply)
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    reply = None
                    continue
                try:
                    reply = self._http.request(
                        step.method,
                        step.path,
                        params=step.params,
                        content=step.content,
                        files=step.files,
                        headers=step.headers,
                        timeout=step.timeout,
                    )
                except httpx.TransportError as error:
                    reply = error
        except StopIteration as end:
            return end.value
