"""`GET /retrain/…`: how far it is to the next retrain, and the jobs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from redis.exceptions import RedisError

from api.deps import AppState, State, require_api_key
from api.schemas import JobOut, LabelCountsOut, StatusOut
from shared import counter, jobs, labels, registry

router = APIRouter(prefix="/retrain", tags=["retrain"], dependencies=[Depends(require_api_key)])
JobId = Annotated[int, Path(ge=1, le=2**63 - 1)]


@router.get("/status")
def status(state: State) -> StatusOut:
    """Count, threshold, what remains, the live version and the running job."""
    threshold = state.settings.threshold
    with state.sessions.begin() as session:
        counts = labels.label_counts(session)
        live = registry.live(session)
        active = jobs.active_job(session)
        last = jobs.recent(session, 1)
    return StatusOut(
        current_count=counts.waiting,
        threshold=threshold,
        remaining=max(0, threshold - counts.waiting),
        progress_percent=round(min(100.0, 100 * counts.waiting / threshold), 1),
        model_version=live.version.version if live else None,
        tally=_tally(state),
        labels=LabelCountsOut.model_validate(counts),
        active_job=JobOut.model_validate(active) if active else None,
        last_job=JobOut.model_validate(last[0]) if last else None,
    )


@router.get("/jobs")
def list_jobs(state: State, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> list[JobOut]:
    """The newest jobs, newest first."""
    with state.sessions.begin() as session:
        return [JobOut.model_validate(job) for job in jobs.recent(session, limit)]


@router.get("/jobs/{job_id}")
def get_job(state: State, job_id: JobId) -> JobOut:
    """One job with its step, progress, row counts, error and log."""
    with state.sessions.begin() as session:
        return JobOut.model_validate(jobs.get(session, job_id))


def _tally(state: AppState) -> int | None:
    try:
        return counter.read_tally(state.redis)
    except (RedisError, OSError, ValueError):
        return None
