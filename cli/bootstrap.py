"""The first model: from a file to version 1."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared import jobs, registry
from shared.artifacts import ArtifactStore
from shared.database import Sessions, database_url, make_engine, make_sessions, migrate
from shared.errors import RatchetError
from shared.queue import make_celery, send_retrain
from shared.settings import Settings, load_settings
from shared.tables import Job

if TYPE_CHECKING:
    import pandas as pd

    from worker.inference import Inferred

POLL_SECONDS = 0.2
SILENT_SECONDS = 30.0
"""A job that is queued this long has no worker."""

Report = Callable[[str, float], None]
"""Hears a step's name and how much of the job is done, 0 to 1."""


class BootstrapFailed(RatchetError):
    """The first job did not end with a version."""

    title = "No first model"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the user says of the file's columns."""

    target: str
    id_column: str | None = None
    categorical: Sequence[str] = ()
    numeric: Sequence[str] = ()
    drop: Sequence[str] = ()


def infer_columns(frame: "pd.DataFrame", columns: Columns, settings: Settings) -> "Inferred":
    """The signature that a file suggests.

    Raises:
        DataError: no model can be made of it; the text names the column.
    """
    from worker.inference import infer

    return infer(
        frame,
        target=columns.target,
        id_column=columns.id_column,
        categorical=columns.categorical,
        numeric=columns.numeric,
        drop=columns.drop,
        max_categories=settings.max_categories,
    )


def bootstrap(
    frame: "pd.DataFrame",
    inferred: "Inferred",
    *,
    settings: Settings,
    id_column: str | None = None,
    report: Report = lambda _step, _done: None,
) -> int:
    """Store the first part, request the job, wait for a worker to finish it; answers the version.

    Args:
        settings: with the URLs of Postgres and Redis.

    Raises:
        Conflict: there is a model already.
        BootstrapFailed: the job was skipped or failed, or no worker took it; the text says why.
    """
    from worker.bootstrap import bootstrap as request

    url = database_url(settings)
    migrate(url)
    engine = make_engine(url, name="ratchet bootstrap", size=1)
    sessions = make_sessions(engine)
    try:
        store = ArtifactStore(settings.artifacts)
        job_id = request(frame, inferred, sessions=sessions, store=store, id_column=id_column)
        with make_celery(settings) as celery:
            send_retrain(celery, sessions, job_id)
        return _wait(sessions, job_id, report)
    finally:
        engine.dispose()


def has_model(settings: Settings) -> bool:
    """Whether a version is live."""
    engine = make_engine(database_url(settings), name="ratchet bootstrap", size=1)
    try:
        with make_sessions(engine)() as session:
            return registry.newest_deployment(session) is not None
    finally:
        engine.dispose()


def with_urls(database_url: str, redis_url: str) -> Settings:
    """The settings of this process on other servers."""
    urls = {"database_url": database_url, "redis_url": redis_url}
    return Settings.model_validate({**load_settings().model_dump(), **urls})


def _wait(sessions: Sessions, job_id: int, report: Report) -> int:
    queued_since = time.monotonic()
    while True:
        with sessions() as session:
            job = jobs.get(session, job_id)
        if job.state == "succeeded":
            return int(job.result["version"])
        if job.state in ("skipped", "failed", "rejected"):
            raise BootstrapFailed(f"job {job_id} {job.state}: {_why(job)}")
        if job.state != "queued":
            queued_since = time.monotonic()
        elif time.monotonic() - queued_since > SILENT_SECONDS:
            raise BootstrapFailed(
                f"job {job_id} waits for a worker: start one with `ratchet up`, or `ratchet doctor` says more"
            )
        report(job.step or job.state, job.progress)
        time.sleep(POLL_SECONDS)


def _why(job: Job) -> str:
    return str(job.error or job.result.get("reason") or "see `ratchet jobs`")
