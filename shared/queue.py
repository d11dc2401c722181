"""The Celery app, the names of its tasks, and how a job's message is sent."""

import re
import secrets
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from shared import jobs
from shared.counter import redis_url
from shared.database import Sessions
from shared.errors import NotFound
from shared.settings import Settings

RETRAIN = "ratchet.retrain"
SWEEP = "ratchet.sweep"
RECONCILE = "ratchet.reconcile"
RETRAIN_QUEUE = "retrain"
UPKEEP_QUEUE = "upkeep"
RESEND_SECONDS = 8.0
"""A queued job whose message is older than this gets another; a message nobody needs finds nothing to do."""

_TASK_ID = re.compile(r"\bjob-(\d+)-[0-9a-f]{8}\b")

log = structlog.get_logger()


def make_celery(settings: Settings) -> Celery:
    """A Celery app on Redis: messages acknowledged early, one task a child for training, no results kept."""
    app = Celery("ratchet", broker=redis_url(settings))
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue=UPKEEP_QUEUE,
        task_routes={RETRAIN: {"queue": RETRAIN_QUEUE}},
        task_serializer="json",
        accept_content=["json"],
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_soft_shutdown_timeout=1.0,
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(),
        beat_schedule=_schedule(settings),
        beat_scheduler="celery.beat:Scheduler",
        beat_max_loop_interval=1,
    )
    return app


def task_id(job_id: int) -> str:
    """An id for a message, never given before, that shows in Flower and in logs which job it wakes."""
    return f"job-{job_id}-{secrets.token_hex(4)}"


def job_of_task(text: str) -> int | None:
    """The job that a task's id in the text names, if there is one."""
    found = _TASK_ID.search(text)
    return int(found[1]) if found else None


def send_retrain(app: Celery, session_of: Sessions, job_id: int) -> bool:
    """Send the wake-up for a job that is committed; a failure is left to the sweeper and answers False.

    May block for some seconds when Redis is away, so it never runs on an event loop.
    """
    try:
        with session_of.begin() as session:
            trigger = jobs.get(session, job_id).trigger
        arguments = {"job_id": job_id, "trigger": trigger}
        app.send_task(RETRAIN, kwargs=arguments, task_id=task_id(job_id), retry=False, expires=60)
        with session_of.begin() as session:
            jobs.mark_sent(session, job_id)
    except (OperationalError, OSError, SQLAlchemyError, NotFound) as exc:
        log.warning("job message not sent; the sweeper will", job_id=job_id, error=type(exc).__name__)
        return False
    return True


def _transport_options() -> dict[str, Any]:
    # Short time-outs and health checks: without them a worker falls silent after the broker drops it.
    return {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "visibility_timeout": 3600,
    }


def _schedule(settings: Settings) -> dict[str, Any]:
    def every(task: str, seconds: float) -> dict[str, Any]:
        # expired by the time the next is due: a queue that stood still holds no backlog
        return {"task": task, "schedule": seconds, "options": {"expires": max(seconds, 1.0)}}

    return {
        "sweep": every(SWEEP, settings.sweep_seconds),
        "reconcile": every(RECONCILE, settings.reconcile_seconds),
    }
