"""Faults of processes and servers, each caused for real while traffic goes on."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from cli.processes import wait_gone
from shared import jobs
from shared.counter import connect
from shared.database import make_engine, make_sessions
from shared.queue import make_celery, send_retrain
from tests.chaos.pauses import POINTS
from tests.chaos.stack import APIS, Stack

Fault = Callable[..., None]
PATIENCE = 60.0
HELD = "SELECT 1 FROM labels WHERE job_id = %s AND superseded_at IS NULL"
BEFORE_THE_END = [point for point in POINTS if point != "step-12"]


def nothing(stack: Stack, rng: random.Random) -> None:
    """No fault: a job from the first label to the swap."""
    with stack.pauses.at("publish"):
        job = running(stack)
    assert settled(stack, job)["state"] == "succeeded"


def kill_training(stack: Stack, rng: random.Random, points: Sequence[str] = ()) -> None:
    """The process that trains dies at a step, and the next one that takes the job, too."""
    for point in points or [rng.choice(POINTS)]:
        with stack.pauses.at(point) as pid:
            os.kill(pid, signal.SIGKILL)
            wait_gone([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 5)


def kill_three_times(stack: Stack, rng: random.Random) -> None:
    """Every process that takes the job dies: the third time it fails, with the reason."""
    with stack.pauses.at("step-4") as pid:
        job = running(stack)
        os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        with stack.pauses.at("step-4") as pid:
            assert running(stack)["id"] == job["id"]
            os.kill(pid, signal.SIGKILL)
    after = settled(stack, job)
    assert (after["state"], after["failures"]) == ("failed", 3), after
    assert "died" in after["error"]
    assert stack.query(HELD, job["id"]) == []


def kill_worker(stack: Stack, rng: random.Random) -> None:
    """A whole worker dies in the middle of a job, its child with it."""
    with stack.pauses.at(rng.choice(POINTS)) as pid:
        parent = psutil.Process(pid).ppid()
        (name,) = [name for name in stack.names if stack.pid(name) == parent]
        os.kill(pid, signal.SIGKILL)
        stack.kill(name)


def stop_worker(stack: Stack, rng: random.Random) -> None:
    """A worker is asked to stop in the middle of a job: it gives it back, and no failure is counted."""
    with stack.pauses.at(f"step-{rng.randint(2, 11)}") as pid:
        job = running(stack)
        parent = psutil.Process(psutil.Process(pid).ppid())
        (name,) = [name for name in stack.names if stack.pid(name) == parent.pid]
        stack.end(name)
        wait_gone([parent], PATIENCE)
        (back,) = stack.query("SELECT * FROM retrain_jobs WHERE id = %s", job["id"])
        assert back["state"] == "queued" or back["fence"] > job["fence"], back
    after = settled(stack, job)
    assert (after["state"], after["failures"]) == ("succeeded", job["failures"]), after


def kill_api(stack: Stack, rng: random.Random) -> None:
    """An API dies under load."""
    stack.kill(rng.choice(APIS))
    time.sleep(rng.uniform(1, 4))


def stop_postgres(stack: Stack, rng: random.Random) -> None:
    """Postgres stops at once, as in a crash, and is back after some seconds."""
    with postgres_away(stack):
        time.sleep(rng.uniform(0, 5))
    time.sleep(2)


def stop_postgres_while_publishing(stack: Stack, rng: random.Random) -> None:
    """Postgres crashes while the transaction that publishes is open; the same worker goes on."""
    with stack.pauses.at("publish"):
        job = running(stack)
        with postgres_away(stack):
            time.sleep(rng.uniform(0, 2))
    after = settled(stack, job)
    assert (after["state"], after["failures"], after["fence"]) == ("succeeded", job["failures"], job["fence"])


def freeze_postgres(stack: Stack, rng: random.Random) -> None:
    """Every process of Postgres stands still for some seconds: nothing is refused, nothing answers."""
    family = psutil.Process(stack.postgres.pid).children(recursive=True)
    frozen = [psutil.Process(stack.postgres.pid), *family]
    with standing_still(frozen):
        time.sleep(rng.uniform(1, 5))


def empty_valkey(stack: Stack, rng: random.Random) -> None:
    """Valkey is killed and comes back with nothing in it: no tally, no latch, no queue."""
    pid = stack.valkey.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    stack.valkey.stop()
    for left in stack.valkey.directory.glob("appendonlydir*"):
        shutil.rmtree(left)
    time.sleep(rng.uniform(0, 3))
    stack.valkey.start()
    time.sleep(1)


def forget(stack: Stack, rng: random.Random) -> None:
    """Redis forgets everything while nobody sends and nothing trains."""
    with connect(stack.valkey.url) as client:
        client.flushall()


def redis_away(stack: Stack, rng: random.Random, seconds: float | None = None) -> None:
    """Redis can't be reached: connections are refused, or nothing comes back on them."""
    seconds = rng.uniform(3, 12) if seconds is None else seconds
    if rng.random() < 0.5:
        stack.redis_line.down()
        time.sleep(seconds)
        stack.redis_line.up()
    else:
        stack.redis_line.silence()
        time.sleep(seconds)
        stack.redis_line.speak()


def cut_off_worker(stack: Stack, rng: random.Random, point: str | None = None) -> None:
    """Postgres ends every connection of the workers; the job goes on, and nothing failed."""
    with stack.pauses.at(point or rng.choice(BEFORE_THE_END)):
        job = running(stack)
        stack.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ratchet worker'"
        )
    after = settled(stack, job)
    assert (after["state"], after["failures"], after["fence"]) == ("succeeded", job["failures"], job["fence"])


def freeze_worker(stack: Stack, rng: random.Random, point: str | None = None) -> None:
    """A worker stands still past its lease; another ends its job, and the thawed one publishes nothing."""
    point = point or rng.choice(["step-8-progress", "publish"])
    with stack.pauses.at(point) as pid:
        job = running(stack)
        frozen = [psutil.Process(pid), psutil.Process(psutil.Process(pid).ppid())]
        with standing_still(frozen):
            stack.pauses.let_go(point)
            after = settled(stack, job)
    assert after["state"] == "succeeded", after
    assert after["fence"] > job["fence"], "another worker took it over"
    found = stack.query("SELECT count(*) AS n FROM model_versions WHERE job_id = %s", job["id"])
    assert found == [{"n": 1}]


def send_twice(stack: Stack, rng: random.Random) -> None:
    """Both workers are handed the same message: one of them runs the job, once."""
    engine = make_engine(stack.postgres.url, name="chaos")
    sessions, celery = make_sessions(engine), make_celery(stack.settings)
    with sessions.begin() as session:
        job, _ = jobs.request_by_admin(session, force=True, reason="sent twice")
    for _ in range(rng.randint(2, 4)):
        assert send_retrain(celery, sessions, job.id)
    before = {"id": job.id, "fence": job.fence, "failures": job.failures}
    after = settled(stack, before)
    assert (after["state"], after["fence"] - before["fence"]) in (("succeeded", 1), ("succeeded", 0)), after
    celery.close()
    engine.dispose()


@contextmanager
def postgres_away(stack: Stack) -> Iterator[None]:
    """Postgres is stopped at once (SIGQUIT: it recovers from its log) until the block ends."""
    pid = stack.postgres.pid
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)
    wait_gone([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 10)
    try:
        yield
    finally:
        stack.postgres.start()


@contextmanager
def standing_still(processes: list[psutil.Process]) -> Iterator[None]:
    """SIGSTOP until the block ends, then SIGCONT."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def running(stack: Stack) -> dict[str, Any]:
    """The job that runs."""
    (job,) = stack.query("SELECT * FROM retrain_jobs WHERE state = 'running'")
    return job


def settled(stack: Stack, job: dict[str, Any]) -> dict[str, Any]:
    """The job once it is over."""
    deadline = time.monotonic() + PATIENCE
    while True:
        (found,) = stack.query("SELECT * FROM retrain_jobs WHERE id = %s", job["id"])
        if found["state"] not in ("queued", "running"):
            return found
        assert time.monotonic() < deadline, f"job {job['id']} is {found['state']} at {found['step']}"
        time.sleep(0.05)
