"""Thin tasks: take an id, re-read the state, call what does the work."""

import os
import signal
from functools import lru_cache

import structlog
from billiard.common import TERM_SIGNAL
from celery import Task, shared_task
from redis import Redis

from shared import upkeep
from shared.artifacts import ArtifactStore
from shared.counter import connect, redis_url
from shared.database import Sessions, database_url, make_engine, make_sessions
from shared.errors import RatchetError
from shared.queue import RECONCILE, RETRAIN, SWEEP
from shared.settings import load_settings
from worker.app import app

NICE = 10
"""Where they share a machine, training leaves the cores to those who serve. Its process ends with it."""


@lru_cache(maxsize=1)
def _sessions() -> Sessions:
    """Made in the child, at its first task: a pool must not cross a fork."""
    return make_sessions(make_engine(database_url(load_settings()), name="ratchet worker", size=2))


@lru_cache(maxsize=1)
def _redis() -> Redis:
    """One pool a child, too."""
    return connect(redis_url(load_settings()))


@shared_task(bind=True, name=RETRAIN)
def retrain(task: Task, *, job_id: int, trigger: str = "") -> str:  # noqa: ARG001 - Flower shows the trigger
    """Run a job; Flower shows the line that it answers."""
    with structlog.contextvars.bound_contextvars(job_id=job_id):
        return _retrain(task, job_id)


def _retrain(task: Task, job_id: int) -> str:
    """Heavy imports stay in here, out of the parent process."""
    from worker.retrain import run_job
    from worker.run import Context, Stop

    os.nice(NICE)
    settings, stop = load_settings(), Stop()
    context = Context(
        settings=settings,
        sessions=_sessions(),
        store=ArtifactStore(settings.artifacts),
        redis=_redis(),
        celery=app,
        notify=lambda text: task.send_event("task-progress", result=text),
        stop=stop,
    )
    before = signal.signal(TERM_SIGNAL, stop.on_signal)
    try:
        return run_job(job_id, context)
    except RatchetError:
        raise
    except Exception as exc:  # noqa: BLE001 - raised again, as what the parent knows
        # The parent unpickles it, and can't import what defines CatBoost's: that would end the worker.
        raise RatchetError(f"{type(exc).__name__}: {exc}") from None
    finally:
        signal.signal(TERM_SIGNAL, before)


@shared_task(name=SWEEP, send_events=False)
def sweep() -> list[int]:
    """Repeat what a fault may have left undone."""
    settings = load_settings()
    return upkeep.sweep(
        sessions=_sessions(),
        celery=app,
        redis=_redis(),
        store=ArtifactStore(settings.artifacts),
        settings=settings,
    )


@shared_task(name=RECONCILE, send_events=False)
def reconcile() -> int:
    """Set the tally from Postgres."""
    return upkeep.reconcile(sessions=_sessions(), redis=_redis())
