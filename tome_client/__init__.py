"""A Python client for tome-serve. It requires httpx: ``pip install '.[client]'`` in a checkout.

    from tome_client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.classify("shoe.jpg", r=16).label)

The package requires neither torch nor the server. `AsyncClient` has the same methods as coroutines.
"""

from tome_client.asynchronous import AsyncClient
from tome_client.errors import (
    BadAnswer,
    BadImage,
    BadMedia,
    BadRequest,
    DeadlineExceeded,
    EngineLost,
    HeaderTooLarge,
    InferenceFailed,
    InvalidParameter,
    Malformed,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    ProblemError,
    ReloadFailed,
    SlowBody,
    SlowHeader,
    TomeError,
    TooLarge,
    Unauthorized,
    Unreachable,
    UnsupportedFormat,
)
from tome_client.results import (
    Classification,
    Level,
    Media,
    Model,
    Pass,
    Prediction,
    Timing,
    Tokens,
    Video,
    Window,
)
from tome_client.retrying import Retry
from tome_client.synchronous import Client

__all__ = [
    "AsyncClient",
    "BadAnswer",
    "BadImage",
    "BadMedia",
    "BadRequest",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "EngineLost",
    "HeaderTooLarge",
    "InferenceFailed",
    "InvalidParameter",
    "Level",
    "Malformed",
    "Media",
    "MethodNotAllowed",
    "Model",
    "NotFound",
    "Overloaded",
    "Pass",
    "Prediction",
    "ProblemError",
    "ReloadFailed",
    "Retry",
    "SlowBody",
    "SlowHeader",
    "Timing",
    "Tokens",
    "TomeError",
    "TooLarge",
    "Unauthorized",
    "Unreachable",
    "UnsupportedFormat",
    "Video",
    "Window",
]
