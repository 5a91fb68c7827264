"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx

from tome_client.calls import Calls, Windows, parameters
from tome_client.results import Classification, Model
from tome_client.retrying import Pause, Retry, Steps

if TYPE_CHECKING:
    from tome_client.errors import ProblemError
    from tome_client.pictures import ImageLike

R = int | str | Sequence[int] | None
Confidence = float | Literal["auto"] | None


class Client:
    """A blocking client for one server. Threads may share it.

    Args:
        url: base URL of the server.
        api_key: API key, if the server requires one.
        timeout: timeout in seconds of each phase of a request: connect, send, receive.
        retry: retry policy for an overloaded or unreachable server.

    All methods raise the exceptions in `tome_client.errors`. An image is bytes, a path, an open
    file, a Pillow image or a numpy array (`tome_client.pictures`). A model that takes sound or
    video is given a sound or a video instead: bytes, a path or an open file. ``windows`` says what
    becomes of the windows of a long one: ``"mean"``, their average; ``"first"``, the first alone;
    or ``"each"``, which gives every window's result as well. A video has ``clips`` times ``crops``
    windows; where they are not given, as many as its model has by default.

    ``r`` is a number, a list of numbers (one per block), a schedule string (``"16:-1"``) or
    ``"auto"``. With ``"auto"`` the server merges only as many tokens as ``deadline_ms`` requires.
    It uses no level above ``r_max``, none whose accuracy is below ``min_accuracy`` percent, and
    only those that the model's profile shows to agree with r=0 on at least ``min_agreement``
    percent of images, and to have embeddings of a mean cosine of at least ``min_fidelity`` with
    those of r=0.
    With ``confidence`` an image runs again at ``confidence_r`` (0 if it is not given) where the
    probabilities of its two best classes differ by less; ``"auto"`` takes the margin from the
    model's profile.
    ``model`` is the name of a model; the default is the server's first.
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
        min_agreement: float | None = None,
        min_fidelity: float | None = None,
        confidence: Confidence = None,
        confidence_r: R = None,
        top_k: int | None = None,
        text: str | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
        windows: Windows | None = None,
        clips: int | None = None,
        crops: int | None = None,
    ) -> Classification:
        """Return the best ``top_k`` classes of an image, within ``deadline_ms`` milliseconds.

        ``text`` names one of the `Model.label_sets`.
        """
        query = parameters(
            r=r,
            r_max=r_max,
            min_accuracy=min_accuracy,
            min_agreement=min_agreement,
            min_fidelity=min_fidelity,
            confidence=confidence,
            confidence_r=confidence_r,
            top_k=top_k,
            text=text,
            deadline_ms=deadline_ms,
            model=model,
            windows=windows,
            clips=clips,
            crops=crops,
        )
        result: Classification = self._run(self._calls.classify(image, query))
        return result

    def classify_many(
        self,
        images: Iterable[ImageLike],
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        min_agreement: float | None = None,
        min_fidelity: float | None = None,
        confidence: Confidence = None,
        confidence_r: R = None,
        top_k: int | None = None,
        text: str | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
        windows: Windows | None = None,
        clips: int | None = None,
        crops: int | None = None,
    ) -> list[Classification | ProblemError]:
        """Classify several images, a few per request. Return a result or an error for each."""
        query = parameters(
            r=r,
            r_max=r_max,
            min_accuracy=min_accuracy,
            min_agreement=min_agreement,
            min_fidelity=min_fidelity,
            confidence=confidence,
            confidence_r=confidence_r,
            top_k=top_k,
            text=text,
            deadline_ms=deadline_ms,
            model=model,
            windows=windows,
            clips=clips,
            crops=crops,
        )
        results: list[Classification | ProblemError] = self._run(
            self._calls.classify_many(images, query)
        )
        return results

    def embed(
        self,
        image: ImageLike,
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        min_agreement: float | None = None,
        min_fidelity: float | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
        windows: Windows | None = None,
        clips: int | None = None,
        crops: int | None = None,
        normalize: bool | None = None,
    ) -> Any:
        """Return the pooled features ``(D,)`` of an image.

        They are a float32 numpy array, or an ``array.array`` if numpy is not installed. With
        ``windows="each"`` there is a row for each window.
        """
        query = parameters(
            r=r,
            r_max=r_max,
            min_accuracy=min_accuracy,
            min_agreement=min_agreement,
            min_fidelity=min_fidelity,
            deadline_ms=deadline_ms,
            model=model,
            windows=windows,
            clips=clips,
            crops=crops,
            normalize=normalize,
        )
        return self._run(self._calls.embed(image, query))

    def embed_many(
        self,
        images: Iterable[ImageLike],
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        min_agreement: float | None = None,
        min_fidelity: float | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
        windows: Windows | None = None,
        clips: int | None = None,
        crops: int | None = None,
        normalize: bool | None = None,
    ) -> list[Any]:
        """Return the features of several images, a few per request. Any failure raises.

        With ``windows="each"`` each sound or video is a request of its own.
        """
        query = parameters(
            r=r,
            r_max=r_max,
            min_accuracy=min_accuracy,
            min_agreement=min_agreement,
            min_fidelity=min_fidelity,
            deadline_ms=deadline_ms,
            model=model,
            windows=windows,
            clips=clips,
            crops=crops,
            normalize=normalize,
        )
        features: list[Any] = self._run(self._calls.embed_many(images, query))
        return features

    def visualize(
        self,
        image: ImageLike,
        *,
        r: R = None,
        r_max: int | None = None,
        min_accuracy: float | None = None,
        min_agreement: float | None = None,
        min_fidelity: float | None = None,
        deadline_ms: float | None = None,
        model: str | None = None,
        windows: Windows | None = None,
        clips: int | None = None,
        crops: int | None = None,
    ) -> bytes:
        """Return a PNG image that shows which tokens were merged."""
        query = parameters(
            r=r,
            r_max=r_max,
            min_accuracy=min_accuracy,
            min_agreement=min_agreement,
            min_fidelity=min_fidelity,
            deadline_ms=deadline_ms,
            model=model,
            windows=windows,
            clips=clips,
            crops=crops,
        )
        png: bytes = self._run(self._calls.visualize(image, query))
        return png

    def models(self) -> list[Model]:
        """Return the served models, default first, with cost and accuracy for each ``r``."""
        models: list[Model] = self._run(self._calls.models())
        return models

    def ready(self) -> bool:
        """Return whether the server is ready. Send one request, without retries."""
        is_ready: bool = self._run(self._calls.ready())
        return is_ready

    def close(self) -> None:
        """Close all connections, as does the end of a ``with`` block."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return the client. Connections open on first use."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all connections."""
        self.close()

    def _run(self, steps: Steps) -> Any:
        """Perform the requests and pauses of ``steps``. Return their result."""
        outcome: httpx.Response | httpx.TransportError | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    outcome = None
                    continue
                try:
                    outcome = self._http.request(
                        step.method,
                        step.path,
                        params=step.params,
                        content=step.content,
                        files=step.files,
                        headers=step.headers,
                        timeout=step.timeout,
                    )
                except httpx.TransportError as error:
                    outcome = error
        except StopIteration as end:
            return end.value
