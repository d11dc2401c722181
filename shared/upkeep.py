"""What beat repeats: everything that a lost message, a wiped Redis or a killed worker left undone."""

from celery import Celery
from redis import Redis

from shared import counter, jobs, labels, registry
from shared.artifacts import ArtifactStore
from shared.database import Sessions
from shared.queue import RESEND_SECONDS, send_retrain
from shared.settings import Settings


def sweep(
    *, sessions: Sessions, celery: Celery, redis: Redis, store: ArtifactStore, settings: Settings
) -> list[int]:
    """Start a due job, resend lost messages, repeat the announcement and the pruning.

    Answers the jobs that got a message.
    """
    with sessions.begin() as session:
        jobs.request_due(session, settings)
        waiting_for_a_worker = jobs.to_send(session, resend_seconds=RESEND_SECONDS)
        deployment = registry.newest_deployment(session)
    for job_id in waiting_for_a_worker:
        send_retrain(celery, sessions, job_id)
    if deployment is not None:
        counter.announce(redis, deployment)
    with sessions() as session:
        registry.prune(session, store, keep=settings.keep_versions)
    return waiting_for_a_worker


def reconcile(*, sessions: Sessions, redis: Redis) -> int:
    """Set the tally to the labels that wait in Postgres; answers how many."""
    with sessions.begin() as session:
        waiting = labels.waiting(session)
    counter.set_tally(redis, waiting)
    return waiting
