"""The routes below ``/admin``, for who runs the server. Without `TOME_ADMIN_KEY` there are none.

`RequestMiddleware` checks their key, which is none of the API keys.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.api.contract.problem_details import error_responses
from server.api.contract.reload_schemas import Reload, ReloadState
from server.engine_client.reloads import Reloads
from server.errors import ReloadFailed
from server.ipc.reload import ReloadReport, ReloadResult

router = APIRouter(prefix="/admin", tags=["administration"])


@router.post("/reload", responses=error_responses(401, 422))
async def reload(request: Request) -> Reload:
    """Read the catalog again, and serve what it says; the answer comes when that is done.

    New and changed models are loaded and checked beside those that serve, which may take minutes.
    If one cannot be served, those of before serve on. While a reload is under way, all that are
    requested wait for it and share the next.
    """
    reloads: Reloads = request.app.state.reloads
    report = await reloads.reload()
    if report.result is ReloadResult.FAILED:
        raise ReloadFailed(f"{report.reason}; the models of before serve on")
    return _describe(report)


@router.get("/reload", responses=error_responses(401))
async def reload_state(request: Request) -> ReloadState:
    """Whether a reload is under way, and what came of the last one."""
    reloads: Reloads = request.app.state.reloads
    last = reloads.status.last
    return ReloadState(
        running=reloads.status.running, last=None if last is None else _describe(last)
    )


def _describe(report: ReloadReport) -> Reload:
    return Reload(
        result=report.result.value,
        reason=report.reason or None,
        models=list(report.models),
        aliases=dict(report.aliases),
        seconds=round(report.seconds, 3),
    )
