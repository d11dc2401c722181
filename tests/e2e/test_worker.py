"""Real Celery workers: a job trained, given back by a stopped worker, taken over from a dead one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shared.queue import send_retrain
from shared.settings import Settings, variable
from shared.tables import Job
from shared.upkeep import sweep
from tests.integration.production import (
    all_versions,
    chain,
    changed,
    counts,
    execute,
    job_of,
    send,
    start_job,
    unseen,
)
from worker.run import Context

ENDLESS = 10**7
WAIT_SECONDS = 60


class Worker:
    """A Celery worker that trains, in a session of its own."""

    def __init__(self, settings: Settings, name: str, log: Path, *, iterations: int) -> None:
        secrets = {
            "database_url": settings.database_url,
            "redis_url": settings.redis_url,
        }
        plain = {
            "home": settings.home,
            "threshold": settings.threshold,
            "min_class_rows": settings.min_class_rows,
            "iterations": iterations,
            "threads": 1,
            "window": 300,
            "balance": "none",
            "gate_tolerance": 1.0,
            "lease_seconds": 2.0,
            "renew_seconds": 0.5,
        }
        values = {key: value.get_secret_value() for key, value in secrets.items() if value}
        values |= {key: str(value) for key, value in plain.items()}
        env = {**os.environ, **{variable(key): value for key, value in values.items()}}
        # fmt: off
        self._argv = [
            sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-Q", "retrain",
            "--concurrency", "1", "--max-tasks-per-child", "1", "-n", f"{name}@%h", "--loglevel", "info",
        ]
        # fmt: on
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self._argv,
                env={**env, "REMAP_SIGTERM": "SIGQUIT"},
                cwd=log.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def kill(self) -> None:
        """End all of it, however it stands."""
        family = []
        if self.process.poll() is None:
            family = self.children()
            self.process.kill()
        for child in family:
            child.kill()
        self.process.wait(10)


StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(context: Context, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers, and ends them with the test."""
    started: list[Worker] = []

    def start(name: str, *, iterations: int = 3) -> Worker:
        worker = Worker(context.settings, name, tmp_path / f"{name}.log", iterations=iterations)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()


def wait_for(context: Context, job_id: int, true: Callable[[Job], bool], *workers: Worker) -> Job:
    """The job once that is true of it; a worker's log is shown if it never is."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not true(job := job_of(context.sessions, job_id)):
        logs = "\n".join(worker.log.read_text(encoding="utf-8", errors="replace") for worker in workers)
        assert time.monotonic() < deadline, f"step {job.step_number}, {job.state}, {job.error}\n{logs}"
        time.sleep(0.05)
    return job


def is_fitting(job: Job) -> bool:
    return job.state == "running" and job.step_number == 8


def due_job(context: Context) -> int:
    send(context.sessions, unseen(50))
    job_id = start_job(context)
    assert send_retrain(context.celery, context.sessions, job_id)
    return job_id


def check_finished_once(context: Context, job_id: int) -> None:
    assert [version.job_id for version in all_versions(context.sessions)] == [1, job_id]
    assert [deployment.champion for deployment in chain(context.sessions)] == [1, 2]
    found = counts(context.sessions)
    assert (found.trained, found.waiting, found.claimed) == (50, 0, 0)


def test_a_job_that_is_sent_becomes_a_published_version(context: Context, start_worker: StartWorker) -> None:
    job_id = due_job(context)
    worker = start_worker("one")
    job = wait_for(context, job_id, lambda job: job.state == "succeeded", worker)
    assert (job.fence, job.failures) == (1, 0)
    check_finished_once(context, job_id)
    version = all_versions(context.sessions)[1]
    assert context.store.read(version.artifact_key, "model.onnx")


def test_a_worker_that_is_stopped_gives_its_job_back_and_another_finishes_it(
    context: Context, start_worker: StartWorker
) -> None:
    job_id = due_job(context)
    stopped = start_worker("stopped", iterations=ENDLESS)
    wait_for(context, job_id, is_fitting, stopped)
    children = stopped.children()
    assert [child.nice() for child in children] == [10], "training leaves the cores to those who serve"
    stopped.process.send_signal(signal.SIGTERM)
    other = start_worker("other")  # the message that the first one leaves is enough
    job = wait_for(context, job_id, lambda job: job.state == "succeeded", stopped, other)
    # given back: a lease that ran out, or an error, would have counted
    assert (job.fence, job.failures) == (2, 0), stopped.log.read_text("utf-8")
    stopped.process.wait(WAIT_SECONDS)
    assert not [child for child in children if child.is_running()]
    check_finished_once(context, job_id)


def test_a_job_whose_worker_was_killed_is_taken_over_after_its_lease(
    context: Context, start_worker: StartWorker
) -> None:
    job_id = due_job(context)
    killed = start_worker("killed", iterations=ENDLESS)
    wait_for(context, job_id, is_fitting, killed)
    other = start_worker("other")
    (child,) = killed.children()
    child.kill()
    killed.kill()

    def expired(_: Job) -> bool:
        statement = "SELECT lease_until < now() AS over FROM retrain_jobs WHERE id = :id"
        return bool(execute(context.sessions, statement, id=job_id)[0].over)

    wait_for(context, job_id, expired, other)
    assert job_of(context.sessions, job_id).state == "running"
    assert sweep_now(context) == [job_id]  # however young the message is that woke the dead one
    job = wait_for(context, job_id, lambda job: job.state == "succeeded", other)
    assert (job.fence, job.failures) == (2, 1)
    check_finished_once(context, job_id)


def sweep_now(context: Context) -> list[int]:
    """What beat asks the upkeep worker for every few seconds."""
    quick = changed(context, lease_seconds=2.0, renew_seconds=0.5)
    return sweep(
        sessions=quick.sessions,
        celery=quick.celery,
        redis=quick.redis,
        store=quick.store,
        settings=quick.settings,
    )
