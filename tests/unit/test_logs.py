"""Every line that a process writes is one event, whoever wrote it."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

import shared

TROUBLE = """
import gc, logging, sys, threading, warnings
from logging.config import dictConfig
from uvicorn.config import LOGGING_CONFIG
dictConfig(LOGGING_CONFIG)  # as uvicorn does, before it makes the app
import structlog
from shared.logs import configure_logs
from shared.settings import Settings

configure_logs(Settings())
structlog.get_logger("ours").info("two\\nlines", rows=3, what={"a": 1})
structlog.get_logger("ours").debug("too small")
logging.getLogger("theirs").warning("100 %s\\nof them", "per cent")
for name in ("uvicorn.error", "uvicorn.access", "alembic.runtime"):
    logging.getLogger(name).warning("from a server")
logging.getLogger("alembic.runtime").info("too small")
warnings.warn("mind the gap")
with structlog.contextvars.bound_contextvars(job_id=7):
    logging.getLogger("theirs").warning("within a job")
try:
    raise ValueError("a\\nb")
except ValueError:
    structlog.get_logger("ours").exception("caught")
    logging.getLogger("theirs").exception("caught too")

def fail():
    raise OSError("in a thread")

thread = threading.Thread(target=fail, name="helper")
thread.start()
thread.join()

class Bad:
    def __del__(self):
        raise KeyError("nobody hears")

Bad()
gc.collect()
raise SyntaxError("nobody caught it")
"""


def written(code: str, **env: str) -> list[str]:
    """What a process writes to standard output and error, which are no terminal."""
    clean = {"PATH": os.environ["PATH"], "RATCHET_REDIS_URL": "redis://127.0.0.1:1/0", **env}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout.decode().splitlines()


@cache
def trouble() -> tuple[dict[str, Any], ...]:
    return tuple(orjson.loads(line) for line in written(TROUBLE))


@pytest.mark.parametrize(
    "expected",
    [
        {"event": "two\nlines", "logger": "ours", "level": "info", "rows": 3, "what": {"a": 1}},
        {"event": "100 per cent\nof them", "logger": "theirs", "level": "warning"},
        {"event": "from a server", "logger": "uvicorn.error"},
        {"event": "from a server", "logger": "uvicorn.access"},
        {"event": "from a server", "logger": "alembic.runtime"},
        {"event": "within a job", "job_id": 7},
        {"event": "caught", "logger": "ours", "level": "error"},
        {"event": "caught too", "logger": "theirs", "level": "error"},
        {"event": "uncaught exception in thread helper", "level": "error"},
        {"event": "uncaught exception", "level": "critical"},
    ],
)
def test_an_event_is_a_line_of_json(expected: dict[str, Any]) -> None:
    assert len([line for line in trouble() if expected.items() <= line.items()]) == 1, trouble()


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("caught", "ValueError: a\nb"),
        ("caught too", "ValueError: a\nb"),
        ("uncaught exception in thread helper", "OSError: in a thread"),
        ("uncaught exception", "SyntaxError: nobody caught it"),
    ],
)
def test_a_traceback_is_a_field_of_its_line(event: str, error: str) -> None:
    (line,) = (line for line in trouble() if line["event"] == event)
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert line["exception"].endswith(error)


def test_nothing_else_is_written() -> None:
    assert all(line["timestamp"].endswith("Z") for line in trouble())
    events = [line["event"] for line in trouble()]
    assert len(events) == 12
    assert len([event for event in events if "UserWarning: mind the gap" in event]) == 1
    assert len([event for event in events if "Bad.__del__" in event]) == 1


@pytest.mark.parametrize(
    ("env", "seen"),
    [
        ({}, ["warning", "error"]),
        ({"RATCHET_LOG_LEVEL": "debug"}, ["debug", "warning", "error"]),
        ({"RATCHET_LOG_LEVEL": "error"}, ["error"]),
    ],
)
def test_the_least_level_holds_whatever_a_library_sets(env: dict[str, str], seen: list[str]) -> None:
    code = """
import logging
from shared.logs import configure_logs
from shared.settings import Settings
configure_logs(Settings())
logging.getLogger().setLevel("DEBUG" if Settings().log_level == "debug" else "INFO")  # as tornado does
for level in ("debug", "warning", "error"):
    getattr(logging.getLogger("theirs"), level)("said")
"""
    assert [orjson.loads(line)["level"] for line in written(code, **env)] == seen


def test_text_is_for_people() -> None:
    lines = written(TROUBLE, RATCHET_LOG_FORMAT="text")
    assert any("within a job" in line and "job_id" in line for line in lines)
    assert not [line for line in lines if line.startswith("{")]


def test_a_server_that_was_silenced_stays_silent() -> None:
    code = """
import logging
from shared.logs import configure_logs
from shared.settings import Settings
access = logging.getLogger("uvicorn.access")
access.handlers, access.propagate = [], False  # as --no-access-log leaves it
configure_logs(Settings())
access.info("a request")
print(access.hasHandlers())
"""
    assert written(code) == ["False"]


def test_a_hook_of_somebody_elses_stays() -> None:
    code = """
import sys, threading
from shared.logs import configure_logs
from shared.settings import Settings
hooks = [lambda *_: None] * 3
sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
configure_logs(Settings())
print([sys.excepthook, threading.excepthook, sys.unraisablehook] == hooks)
"""
    assert written(code) == ["True"]


def test_uvicorns_configuration_gives_lines_before_there_is_an_app() -> None:
    path = Path(shared.__file__).with_name("uvicorn.json")
    code = f"""
import logging, uvicorn
uvicorn.Config("nothing:here", log_config={str(path)!r})
logging.getLogger("uvicorn.error").info("Started parent process")
"""
    (line,) = written(code)
    assert orjson.loads(line)["event"] == "Started parent process"
    assert written(code, RATCHET_LOG_LEVEL="warning") == []
    (refusal,) = written(code, RATCHET_THRESHOLD="none")
    assert "RATCHET_THRESHOLD" in refusal


CELERY = """
import logging
import billiard.util
from billiard.exceptions import WorkerLostError
from celery import signals
from celery.apps import worker as celery_worker
import worker.app
from worker.app import app

task = {"name": "n", "id": "job-12-0a1b2c3d"}
logging.getLogger("celery.app.trace").info("Task %(name)s[%(id)s] succeeded", task)
logging.getLogger("celery.worker.strategy").info("Task ratchet.sweep[5ee7] received")
logging.getLogger("celery.beat").info("Scheduler: Sending due task reconcile (ratchet.reconcile)")
logging.getLogger("celery.app.trace").error("Task ratchet.sweep[5ee7] raised unexpected")
logging.getLogger("celery.worker").warning("nothing about job-12 or job-x-0a1b2c3d")
signals.celeryd_init.send("one@host", instance=None, conf=None, options=None)
celery_worker.safe_say("worker: Cold shutdown")
app.log.setup("INFO")
billiard.util.error("Process %r exited", "ForkPoolWorker-1")
billiard.util.info("process shutting down")
lost = WorkerLostError("signal 9 (SIGKILL)")
class Told:
    def send_event(kind, **event):
        logging.getLogger("told").warning("%s: %s", kind, event["result"])

signals.task_failure.send(Told, task_id="job-13-0a1b2c3d", exception=lost)
signals.task_failure.send(Told, task_id="job-14-0a1b2c3d", exception=OSError("the task's own"))
request = logging.getLogger("celery.worker.request")
request.error("Task handler raised error: %r", lost, exc_info=(type(lost), lost, None))
request.error("a revoked task")
"""


@cache
def celery_lines() -> tuple[dict[str, Any], ...]:
    return tuple(orjson.loads(line) for line in written(CELERY))


def test_celerys_lines_name_the_job_and_leave_out_what_is_routine() -> None:
    found = [(line["event"], line.get("job_id")) for line in celery_lines()]
    assert found == [
        ("Task n[job-12-0a1b2c3d] succeeded", 12),
        ("Task ratchet.sweep[5ee7] raised unexpected", None),
        ("nothing about job-12 or job-x-0a1b2c3d", None),
        ("worker: Cold shutdown", None),
        ("Process 'ForkPoolWorker-1' exited", None),
        ("the training process is lost", 13),
        ("task-progress: lost, to be taken over when its lease has run out: signal 9 (SIGKILL)", None),
        ("a revoked task", None),
    ]


def test_routine_is_said_at_the_level_of_debug() -> None:
    events = [orjson.loads(line)["event"] for line in written(CELERY, RATCHET_LOG_LEVEL="debug")]
    assert "Task ratchet.sweep[5ee7] received" in events
    assert "Scheduler: Sending due task reconcile (ratchet.reconcile)" in events
