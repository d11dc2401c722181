"""Shutdown of real processes: nothing accepted is lost, nothing is left behind, no job has failed."""

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from cli.data import plans
from cli.embedded import EmbeddedPostgres, EmbeddedValkey
from cli.ports import free_port
from cli.processes import Process, session, wait_gone
from cli.services import commands
from cli.stack import Stack
from cli.state import read_state
from shared import counter
from shared.database import database_url, make_engine, make_sessions
from shared.queue import send_retrain
from shared.settings import Settings, variable
from tests.conftest import BOOTSTRAP_ROWS, TARGET, make_context, make_settings
from tests.e2e.clients import Clients
from tests.e2e.stack_driver import Driver
from tests.integration.production import counts, job_of, send, start_job, unseen
from tests.live import query
from tests.processes import environment
from worker.bootstrap import bootstrap
from worker.inference import infer
from worker.retrain import run_job
from worker.run import Context

NEVER = 10**9
ENDLESS = 10**7
SMALL = {
    "threshold": 50,
    "threads": 1,
    "window": 300,
    "balance": "none",
    "min_class_rows": 5,
    "gate_tolerance": 1.0,
}
PATIENCE = 60.0
GRACEFUL = (0, -signal.SIGTERM)
"""How a process may end that was asked to."""


def eventually(true: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


Start = Callable[..., list[Process]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts services as `ratchet up` runs them, on servers that are there; ends them with the test."""
    started: list[Process] = []

    def run(settings: Settings, *names: str, port: int = 0, more: Sequence[str] = ()) -> list[Process]:
        env = {**os.environ, **environment(settings)}
        logs = tmp_path / "logs"
        found = commands(port=port, workers=1, flower=False, logs=logs, cwd=tmp_path, env=env)
        wanted = (command for command in found if command.name in names)
        started.extend(Process(replace(command, argv=[*command.argv, *more])) for command in wanted)
        return started

    yield run
    for process in started:
        process.stop()


def check_ended(process: Process) -> None:
    """It ends within its grace, as it was asked to, and leaves no child behind."""
    ((_, grace),) = process.command.stops
    deadline = time.monotonic() + grace
    while process.is_alive and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.returncode in GRACEFUL, f"{process.command.name} {process.ending()}\n{process.tail(60)}"
    assert wait_gone(session(process.record), 5) == []


def answers(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def check_tally(settings: Settings, clients: Clients) -> None:
    """Every label that was acknowledged has been counted, with nobody there to set the tally."""
    waiting = query(settings, "SELECT waiting_labels() AS labels")[0]["labels"]
    with counter.connect(counter.redis_url(settings)) as redis:
        assert counter.read_tally(redis) == waiting
    assert waiting >= sum(len(sender.labelled) for sender in clients.senders) > 0


def test_an_api_that_is_stopped_answers_and_stores_what_it_has_accepted(
    live_settings: Settings, start: Start
) -> None:
    # deadlines that outlast the lock below, and uvicorn's word that it waits
    changes = {"threshold": NEVER, "record_deadline": 30.0, "log_level": "info"}
    settings = live_settings.model_copy(update=changes)
    port = free_port()
    (api,) = start(settings, "api", port=port)
    eventually(lambda: answers(port, "/ready"), api.tail)
    with Clients(settings, port) as clients:
        eventually(lambda: clients.answers >= 100, lambda: str(clients.faults) + api.tail())
        with psycopg.connect(database_url(settings)) as connection:
            connection.execute("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
            eventually(clients.all_wait, api.tail)
            before = clients.answers
            api.ask_to_stop()
            eventually(lambda: is_refused(port) and "Waiting for connections" in api.tail(), api.tail)
            assert clients.answers == before
        check_ended(api)
    assert clients.faults == []
    assert clients.answers == before + len(clients.senders)  # whoever waited was answered, nobody after
    clients.check_ledger()
    check_tally(settings, clients)


@pytest.mark.parametrize("more", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_an_api_that_is_stopped_in_full_traffic_loses_nothing(
    live_settings: Settings, start: Start, more: tuple[str, ...]
) -> None:
    settings = live_settings.model_copy(update={"threshold": NEVER})
    port = free_port()
    (api,) = start(settings, "api", port=port, more=more)
    eventually(lambda: answers(port, "/ready"), api.tail)
    with Clients(settings, port) as clients:
        eventually(lambda: clients.answers >= 300, lambda: str(clients.faults) + api.tail())
        api.ask_to_stop()
        check_ended(api)
    assert clients.faults == []
    clients.check_ledger()
    check_tally(settings, clients)


def is_fitting(context: Context, job_id: int) -> bool:
    job = job_of(context.sessions, job_id)
    return job.state == "running" and job.step_number == 8


def test_every_service_ends_in_its_grace_when_it_is_asked_to(
    live_settings: Settings, context: Context, start: Start
) -> None:
    often = {"iterations": ENDLESS, "sweep_seconds": 0.2, "log_level": "debug"}
    settings = live_settings.model_copy(update={**SMALL, **often})
    send(context.sessions, unseen(50))
    job_id = start_job(context)
    assert send_retrain(context.celery, context.sessions, job_id)
    port = free_port()
    services = start(settings, "retrain1", "upkeep", "beat", "api", port=port)
    logs = lambda: "\n".join(process.tail() for process in services)  # noqa: E731 - told if a wait is in vain
    eventually(lambda: is_fitting(context, job_id), logs)
    eventually(lambda: answers(port, "/ready"), logs)
    eventually(lambda: "Task ratchet.sweep[" in services[1].tail(500), logs)
    for process in services:
        process.ask_to_stop()
    for process in services:
        check_ended(process)
    job = job_of(context.sessions, job_id)
    assert (job.state, job.failures, job.fence, job.lease_until) == ("queued", 0, 1, None)
    assert counts(context.sessions).claimed == 50


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A stack's folder in which version 1 is live and labels wait."""
    home = tmp_path / "home"
    with Stack(settings=Settings(home=home)) as stack:
        stack.start_servers()
        settings = make_settings(stack.database_url, stack.redis_url, home)
        engine = make_engine(stack.database_url, name="test")
        context, frame = make_context(settings, make_sessions(engine)), plans(BOOTSTRAP_ROWS)
        first = bootstrap(frame, infer(frame, target=TARGET), sessions=context.sessions, store=context.store)
        assert "version 1 published" in run_job(first, context)
        send(context.sessions, unseen(50))
        engine.dispose()
    yield home
    for server in (EmbeddedValkey(home), EmbeddedPostgres(home)):
        server.remove()


Up = Callable[[int], Driver]


@pytest.fixture
def up(home: Path) -> Iterator[Up]:
    """Runs `ratchet up` on that folder with so many iterations a job."""
    drivers: list[Driver] = []

    def run(iterations: int) -> Driver:
        env = {variable(name): str(value) for name, value in {**SMALL, "iterations": iterations}.items()}
        ratchet = str(Path(sys.executable).with_name("ratchet"))
        command = [ratchet, "up", "--port", str(free_port())]
        drivers.append(Driver(home, command, **env))
        drivers[-1].read_until("Ctrl-C stops everything")
        return drivers[-1]

    yield run
    for driver in drivers:
        driver.end()


def last_job(home: Path) -> dict[str, Any]:
    """The newest job of the stack that runs there."""
    state = read_state(home)
    assert state is not None
    with psycopg.connect(state.database_url, row_factory=dict_row) as connection:
        found = connection.execute("SELECT * FROM retrain_jobs ORDER BY id DESC LIMIT 1").fetchone()
    assert found is not None
    return found


def stored_job(home: Path) -> dict[str, Any]:
    """The newest job of a stack that has stopped."""
    with Stack(settings=Settings(home=home)) as stack:
        stack.start_servers()
        return last_job(home)


@pytest.mark.timeout(240)
def test_ctrl_c_gives_the_job_back_and_the_next_up_finishes_it(home: Path, up: Up) -> None:
    first = up(ENDLESS)
    eventually(lambda: last_job(home)["step_number"] == 8, lambda: str(last_job(home)))
    family = first.family()
    os.killpg(first.process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
    assert first.wait() == 0, first.output
    assert not [process for process in family if process.is_running()]
    job = stored_job(home)
    assert (job["trigger"], job["state"], job["failures"], job["fence"]) == ("threshold", "queued", 0, 1)
    assert (job["lease_until"], job["error"]) == (None, None)

    second = up(3)
    eventually(lambda: last_job(home)["state"] == "succeeded", lambda: str(last_job(home)))
    job = last_job(home)
    assert (job["failures"], job["fence"], job["rows"]["new"]) == (0, 2, 50)
    second.process.send_signal(signal.SIGTERM)
    assert second.wait() == 0, second.output
