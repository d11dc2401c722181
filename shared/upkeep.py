"""What beat repeats: everything that a lost message, a wiped Redis or a killed worker left undone."""

import structlog
from celery import Celery
from redis import Redis
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import counter, jobs, labels, registry
from shared.artifacts import ArtifactStore
from shared.database import Sessions
from shared.queue import RESEND_SECONDS, send_retrain
from shared.settings import Settings
from shared.tables import ACTIVE, Job, Part, Version

log = structlog.get_logger()


def sweep(
    *, sessions: Sessions, celery: Celery, redis: Redis, store: ArtifactStore, settings: Settings
) -> list[int]:
    """Start a due job, resend lost messages, repeat the announcement and the pruning, clear the store.

    Answers the jobs that got a message.
    """
    with sessions.begin() as session:
        due = jobs.request_due(session, settings)
        waiting_for_a_worker = jobs.to_send(
            session, resend_seconds=RESEND_SECONDS, lease_seconds=settings.lease_seconds
        )
        deployment = registry.newest_deployment(session)
    if due is not None:
        log.info("a job is due", job_id=due)
    for job_id in waiting_for_a_worker:
        if send_retrain(celery, sessions, job_id):
            log.info("job message sent", job_id=job_id)
    if deployment is not None:
        counter.announce(redis, deployment)
    with sessions() as session:
        registry.prune(session, store, keep=settings.keep_versions)
        if left := collect(session, store):
            log.info("files of ended attempts removed", keys=left)
    return waiting_for_a_worker


def collect(session: Session, store: ArtifactStore) -> list[str]:
    """Remove what killed and skipped attempts of settled jobs left in the store; answers the keys.

    The order matters: files first, then the jobs that are settled, then what rows name. A file that a
    job still needs belongs to an active job or is named by then.
    """
    parts, versions = store.keys("parts"), store.keys("versions")
    settled = set(session.scalars(select(Job.id).where(Job.state.not_in(ACTIVE))))
    named = {*session.scalars(select(Part.key))}
    named |= {*session.scalars(select(Version.artifact_key).where(Version.artifacts_removed_at.is_(None)))}
    left = [key for key in (*parts, *versions) if key not in named and _job_of(key) in settled]
    for key in left:
        if key in versions:
            store.remove_set(key)
        else:
            store.remove_file(key)
    return left


def _job_of(key: str) -> int | None:
    """The job in `parts/{job}-{fence}.parquet` and `versions/{job}-{fence}`."""
    job, dash, _ = key.partition("/")[2].partition("-")
    return int(job) if dash and job.isdigit() else None


def reconcile(*, sessions: Sessions, redis: Redis) -> int:
    """Set the tally to the labels that wait in Postgres; answers how many."""
    with sessions.begin() as session:
        waiting = labels.waiting(session)
    counter.set_tally(redis, waiting)
    return waiting
