"""One event of each kind, of which `exposition.txt` has the numbers."""

from __future__ import annotations

from server.errors import BadImage, DeadlineExceeded
from server.ipc.board import Board, BoardSize
from server.ipc.messages import BatchDone, BatchFailure, Failure, Level, ModelInfo, Outcome
from server.ipc.reload import ReloadResult
from server.media.transforms import ImageTransform
from server.metrics.api import CascadeResult, Metrics
from server.metrics.engine import EngineMetrics
from server.metrics.parent import ParentMetrics
from tome_core.schedule import Schedule

MODEL = ModelInfo(
    name="m",
    architecture="vit",
    transform=ImageTransform((3, 32, 32), "bicubic", 1.0, "center"),
    labels=("a",),
    tokens=17,
    prefix=1,
    depth=2,
    device="cpu",
    dtype="float32",
    levels=(Level("0", 17, 1.0, accuracy=90.5), Level("4", 9, 0.6)),
    grid=(4, 4),
    acceleration="kernels",
    dtype_speedup=1.5,
)
OUTCOMES = (
    Outcome(1, scores=(1.0,), classes=(0,), queue_seconds=0.5),
    Outcome(2, failure=Failure.FAILED),
)
BATCH = BatchDone("m", OUTCOMES, 2, 394, 0.25, 0.2, 0.75, (BatchFailure.ERROR, BatchFailure.NAN))


def happen(metrics: Metrics, engine: EngineMetrics, parent: ParentMetrics) -> None:
    """Count each event once."""
    metrics.observe_models((MODEL,))
    row = Board.create(BoardSize(engines=1, workers=1, slots=1)).engines[0]
    row.beat(now=0.0, resident_bytes=1000)
    row.set_batch_limit(16)
    row.set_ready(True)
    metrics.observe_engine("0", row)
    metrics.queue_jobs.set_function(lambda: 3)
    metrics.inflight_requests.inc()
    metrics.inflight_requests.inc()
    metrics.inflight_requests.dec()
    metrics.requests.labels("/classify", "m", "200").inc()
    metrics.request_duration.labels("/classify", "m").observe(0.025)
    metrics.stage_duration.labels("decode").observe(0.004)
    metrics.cancelled.labels("body").inc()
    metrics.observe_image("m", Schedule.parse("4"))
    metrics.observe_image("m", Schedule.parse("7"))
    metrics.observe_cascade("m", CascadeResult.AGAIN)
    metrics.observe_error(BadImage(""))
    metrics.observe_error(DeadlineExceeded(""))
    metrics.observe_lost_worker("timeout")
    engine.observe_batch(BATCH)
    engine.observe_batch(BATCH)
    parent.observe_restart("0")
    parent.observe_reload(ReloadResult.LOADED)
