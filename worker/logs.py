"""What Celery's processes write: every line about a job names it, and what is routine is not said."""

import logging
from typing import Any

import structlog
from billiard.exceptions import WorkerLostError
from celery import Task
from celery.signals import celeryd_init, setup_logging, task_failure
from celery.utils.log import get_multiprocessing_logger

from shared.logs import configure_logs
from shared.queue import RECONCILE, SWEEP, job_of_task
from shared.settings import Settings

TALKERS = ("celery.app.trace", "celery.beat", "celery.worker.strategy")
"""They tell of every task."""

log = structlog.get_logger()


def configure(settings: Settings) -> None:
    """Configure the logs of a worker, beat or Flower, before Celery does."""
    configure_logs(settings, _add_job)
    setup_logging.connect(_configured)
    celeryd_init.connect(_speak_in_lines)
    task_failure.connect(_tell_of_lost_child)
    logging.getLogger("celery.worker.request").addFilter(_names_its_task)
    if settings.log_level != "debug":
        for name in TALKERS:
            logging.getLogger(name).addFilter(_is_news)


def _configured(**_: Any) -> None:
    """Somebody listens to the signal, so Celery leaves the loggers alone. Its pool's stands apart."""
    pool = get_multiprocessing_logger()
    pool.propagate = True
    pool.setLevel("WARNING")


def _add_job(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Celery's own lines name the task, and the task's id names the job."""
    if "job_id" not in event and (job_id := job_of_task(str(event.get("event", "")))) is not None:
        event["job_id"] = job_id
    return event


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a sweep began and ended well, as one does every few seconds."""
    if record.levelno > logging.INFO:
        return True
    text = record.getMessage()
    return SWEEP not in text and RECONCILE not in text


def _tell_of_lost_child(*, sender: Task, task_id: str, exception: BaseException, **_: Any) -> None:
    """A child was killed, or ran out of memory: it has said nothing, and Celery does not say of which job."""
    if isinstance(exception, WorkerLostError):
        log.error("the training process is lost", job_id=job_of_task(task_id), error=str(exception))
        text = f"lost, to be taken over when its lease has run out: {exception}"
        sender.send_event("task-progress", retry=False, result=text)


def _names_its_task(record: logging.LogRecord) -> bool:
    """What Celery says of a lost child is said already."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(getattr(error, "exc", error), WorkerLostError)


def _speak_in_lines(**_: Any) -> None:
    """What a worker shouts when it gets a signal becomes a line like any other."""
    from celery.apps import worker

    worker.safe_say = _say


def _say(text: str, _stream: object = None) -> None:
    logging.getLogger("celery.worker").info(text)
