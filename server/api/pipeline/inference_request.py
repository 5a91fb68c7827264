"""What a client asks of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from server.api.contract.params import Params
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.response_kinds import ResponseKind

T = TypeVar("T")


@dataclass(frozen=True)
class InferenceRequest(Generic[T]):
    """What a client asks for, whatever images it sends.

    Attributes:
        fail_together: whether the error of one image is that of the request; else the result of an
            image that fails is its problem.
    """

    params: Params
    response_kind: ResponseKind[T]
    context: RequestContext
    fail_together: bool = False
