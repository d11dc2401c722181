"""Two API processes cross the threshold together: one job, and a tally that is true."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from redis import Redis
from sqlalchemy import text

from shared import counter, jobs, labels
from shared.database import Sessions, database_url, make_engine, make_sessions
from shared.queue import RETRAIN_QUEUE
from shared.settings import Settings
from tests.conftest import Servers, Trained
from tests.live import query, trained_settings
from tests.processes import api_processes
from tests.serving import example

CONNECTIONS = 8
REQUESTS = 4
ROWS = 5
ROUNDS = 3
SENT = CONNECTIONS * REQUESTS * ROWS
PATIENCE = 20.0


@pytest.fixture(scope="module")
def crossing(
    servers: Servers, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Settings whose threshold each process crosses with its own half of what is sent."""
    home = tmp_path_factory.mktemp("crossing")
    with trained_settings(servers, trained, home, threshold=SENT // 2) as settings:
        yield settings


@pytest.fixture(scope="module")
def connections(crossing: Settings) -> Iterator[list[httpx.Client]]:
    """Eight connections, by turns to one and the other of two processes on the same servers."""
    with ExitStack() as stack:
        urls = stack.enter_context(api_processes(crossing, crossing.home, 2))
        yield [
            stack.enter_context(httpx.Client(base_url=urls[n % 2], timeout=30, trust_env=False))
            for n in range(CONNECTIONS)
        ]


@pytest.fixture
def redis(crossing: Settings) -> Iterator[Redis]:
    """An empty Redis, the one that both processes use."""
    with counter.connect(counter.redis_url(crossing)) as client:
        client.flushall()
        yield client


@pytest.fixture
def sessions(crossing: Settings) -> Iterator[Sessions]:
    """Sessions on the database that both processes use; nothing is stored there and no job was asked for."""
    engine = make_engine(database_url(crossing), name="test")
    made = make_sessions(engine)
    with made.begin() as session:
        session.execute(text("TRUNCATE predictions, labels, request_ids"))
        session.execute(text("DELETE FROM retrain_jobs WHERE trigger <> 'bootstrap'"))
    yield made
    engine.dispose()


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def send_together(clients: list[httpx.Client], body: dict[str, Any]) -> None:
    """Every connection sends its requests; all begin at the same moment."""
    barrier = threading.Barrier(len(clients))

    def send(client: httpx.Client) -> None:
        barrier.wait(30)
        for _ in range(REQUESTS):
            answer = client.post("/predict", json=body)
            assert (answer.status_code, answer.json()["counted"]) == (200, ROWS), answer.text

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(send, clients))


def asked(settings: Settings) -> list[dict[str, Any]]:
    """The jobs that the threshold started."""
    statement = "SELECT id, state, sent_at FROM retrain_jobs WHERE trigger = 'threshold' ORDER BY id"
    return query(settings, statement)


def settle(sessions: Sessions, redis: Redis, settings: Settings, job_id: int) -> None:
    """What a worker does in the end: its labels wait no more, and the tally says so."""
    with sessions.begin() as session:
        claim = jobs.claim(session, job_id, settings)
        assert claim is not None
        assert labels.claim_waiting(session, job_id) == SENT
        jobs.settle(session, claim, "rejected", rows={}, result={})
    counter.set_tally(redis, 0)
    redis.delete(counter.LATCH)  # it would go by itself, in ten seconds


def test_two_processes_crossing_the_threshold_together_start_one_job(
    connections: list[httpx.Client], crossing: Settings, sessions: Sessions, redis: Redis
) -> None:
    body = {name: values * ROWS for name, values in example(connections[0]).items()}
    for turn in range(1, ROUNDS + 1):
        send_together(connections, body)
        eventually(lambda: counter.read_tally(redis) == SENT)
        eventually(lambda turn=turn: len(asked(crossing)) == turn)
        eventually(lambda: asked(crossing)[-1]["sent_at"] is not None)
        found = asked(crossing)
        assert [job["state"] for job in found] == ["rejected"] * (turn - 1) + ["queued"]
        assert redis.llen(RETRAIN_QUEUE) == turn  # a message a job, as nobody takes them
        with sessions() as session:
            assert labels.waiting(session) == SENT
        settle(sessions, redis, crossing, found[-1]["id"])
    assert len(asked(crossing)) == redis.llen(RETRAIN_QUEUE) == ROUNDS


def test_a_tally_that_is_wrong_starts_no_job(
    connections: list[httpx.Client], crossing: Settings, sessions: Sessions, redis: Redis
) -> None:
    """Redis is a hint: whatever it says, the statement that inserts a job recounts in Postgres."""
    body = example(connections[0])
    counter.set_tally(redis, 10 * SENT)
    for client in connections[:2]:
        redis.delete(counter.LATCH)
        assert client.post("/predict", json=body).status_code == 200
        eventually(lambda: bool(redis.exists(counter.LATCH)))  # a job was asked for
    # a wiped Redis counts on from nothing; by then what was asked for is answered
    redis.flushall()
    for client in connections[:2]:
        assert client.post("/predict", json=body).status_code == 200
    eventually(lambda: counter.read_tally(redis) == 2)
    status = connections[0].get("/retrain/status").json()
    assert (status["current_count"], status["tally"], status["active_job"]) == (4, 2, None)
    assert asked(crossing) == []
