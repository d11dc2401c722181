"""Lines that only real servers make a process write, and what a message says that finds nothing to do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import structlog
from structlog.testing import capture_logs

import shared
from cli.ports import free_port
from shared import jobs
from shared.database import database_url, make_engine, make_sessions
from shared.settings import Settings
from tests.integration.production import execute, send, start_job, unseen
from tests.processes import environment
from tests.proxy import proxied
from worker.lease import Lease
from worker.retrain import run_job
from worker.run import Context

PATIENCE = 30.0


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_line_of_the_thread_that_renews_names_the_job(context: Context) -> None:
    send(context.sessions, unseen(50))
    job_id = start_job(context)
    quick = context.settings.model_copy(update={"renew_seconds": 0.05, "lease_seconds": 5.0})
    with context.sessions.begin() as session:
        claim = jobs.claim(session, job_id, quick)
    assert claim is not None
    with (
        proxied(database_url(context.settings)) as proxy,
        capture_logs([structlog.contextvars.merge_contextvars]) as lines,
    ):
        engine = make_engine(proxy.url, name="test", size=1)
        with (
            structlog.contextvars.bound_contextvars(job_id=job_id),
            Lease(make_sessions(engine), claim, quick),
        ):
            proxy.down()
            wait_until(lambda: lines)
        engine.dispose()
    assert {(line["event"], line["job_id"]) for line in lines} == {
        ("lease not renewed, trying again", job_id)
    }


def test_a_message_that_finds_nothing_to_do_says_why(context: Context) -> None:
    send(context.sessions, unseen(50))
    job_id = start_job(context)
    assert run_job(77, context) == "job 77: nothing to do, there is no job 77"
    with context.sessions.begin() as session:
        claim = jobs.claim(session, job_id, context.settings)
    assert claim is not None
    assert run_job(job_id, context) == f"job {job_id}: nothing to do, another worker runs it"
    execute(
        context.sessions,
        "UPDATE retrain_jobs SET failures = 2, lease_until = now() WHERE id = :id",
        id=job_id,
    )
    assert run_job(job_id, context) == (
        f"job {job_id}: nothing to do, it has failed: its worker died or fell silent too often"
    )
    assert run_job(1, context) == "job 1: nothing to do, it is settled: succeeded"


def test_what_is_notified_of_a_failure_says_whether_it_was_the_last(context: Context) -> None:
    send(context.sessions, unseen(50))
    job_id = start_job(context)
    said: list[str] = []
    parts = Path(context.store.path("parts"))
    parts.rename(parts.with_name("aside"))
    parts.write_text("no folder")
    for _ in range(3):
        try:
            run_job(job_id, replace(context, notify=said.append))
        except FileExistsError:
            continue
    ends = [text.partition(": File")[0] for text in said if not text.partition("%")[0].isdigit()]
    assert ends == ["failed, to be tried again", "failed, to be tried again", "failed, for the last time"]


def uvicorn_lines(settings: Settings, folder: Path, *, processes: int) -> list[dict[str, Any]]:
    """What several processes of the API write from their start to their end, a request between."""
    port = free_port()
    # fmt: off
    argv = [sys.executable, "-m", "uvicorn", "--factory", "api.main:create_app", "--port", str(port),
            "--loop", "uvloop", "--http", "api.protocol:Protocol"]
    # fmt: on
    env = {
        **environment(settings),
        "WEB_CONCURRENCY": str(processes),
        "UVICORN_LOG_CONFIG": str(Path(shared.__file__).with_name("uvicorn.json")),
    }
    log = folder / "api.log"
    with log.open("wb") as output:
        server = subprocess.Popen(argv, env=env, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: log.read_text("utf-8").count("Application startup complete") == processes)
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == httpx.codes.OK
    finally:
        os.kill(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)
    return [orjson.loads(line) for line in log.read_text("utf-8").splitlines()]


def test_every_line_of_several_api_processes_is_one_event(live_settings: Settings, tmp_path: Path) -> None:
    settings = live_settings.model_copy(update={"log_level": "info"})
    lines = uvicorn_lines(settings, tmp_path, processes=2)
    assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in lines)
    events = [line["event"] for line in lines]
    for begin in (
        "Started parent process",
        "Application startup complete",
        "Finished server",
        "Stopping parent",
    ):
        assert any(event.startswith(begin) for event in events), begin
    assert [line for line in lines if line["logger"] == "uvicorn.access" and "/health" in line["event"]]
    assert not [line for line in lines if line["logger"].startswith("alembic")]
