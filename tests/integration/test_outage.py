"""Postgres or Redis goes away while the API serves, and comes back."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from shared import counter
from shared.settings import Settings
from tests.live import Live, live
from tests.proxy import Proxy, proxied

PATIENCE = 20.0


@pytest.fixture
def postgres(live_settings: Settings) -> Iterator[Proxy]:
    """The way from the API to Postgres, which the test can close."""
    assert live_settings.database_url is not None
    with proxied(live_settings.database_url.get_secret_value()) as proxy:
        yield proxy


@pytest.fixture
def redis(live_settings: Settings) -> Iterator[Proxy]:
    """The way from the API to Redis, which the test can close."""
    assert live_settings.redis_url is not None
    with proxied(live_settings.redis_url.get_secret_value()) as proxy:
        yield proxy


@pytest.fixture
def api(live_settings: Settings, postgres: Proxy, redis: Proxy) -> Iterator[Live]:
    """An API that reaches its servers through proxies; the test itself reaches them directly."""
    through = {"database_url": SecretStr(postgres.url), "redis_url": SecretStr(redis.url), "threshold": 10**9}
    with live(live_settings.model_copy(update=through)) as found:
        yield Live(client=found.client, settings=live_settings, row=found.row)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_postgres_is_stopped_and_started(api: Live, postgres: Proxy) -> None:
    """Nothing unstored is acknowledged, unlabelled rows are answered, and no restart is needed."""
    body = {"ids": ["a"], "true_labels": ["Basic Plan"]}
    known = api.predict(ids=["before"], true_labels=["Basic Plan"]).json()
    postgres.down()
    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        labelled = [pool.submit(api.predict, **body) for _ in range(2)]
        unlabelled = [pool.submit(api.predict) for _ in range(2)]
        inputs = pool.submit(api.client.post, "/predict", json={"inputs": [[0.0] * 39]})
        later = pool.submit(api.label, {"id": "before", "true_label": "Family Plan"})
    # 2 s is the product's deadline; the rest is for a busy machine
    assert time.monotonic() - started < api.settings.record_deadline + 5
    refuses_what_it_cant_store([*(answer.result() for answer in labelled), later.result()])
    answers_what_it_cant_store([answer.result() for answer in unlabelled], known)
    assert inputs.result().status_code == 200
    ready = api.client.get("/ready")
    assert (ready.status_code, ready.json()["postgres"]) == (503, "Postgres does not answer")
    assert api.client.get("/health").status_code == 200
    assert api.stored() == {"predictions": 1, "labels": 1, "request_ids": 1}

    postgres.up()
    eventually(lambda: api.client.get("/ready").status_code == 200)
    assert api.predict(**body).json()["counted"] == 1  # the client's retry, with the same id
    assert api.predict(**body).json()["counted"] == 0
    assert api.label({"id": "before", "true_label": "Family Plan"}).json()["corrected"] == 1
    assert api.predict().json()["prediction_ids"] is not None
    assert api.stored() == {"predictions": 3, "labels": 3, "request_ids": 2}


def test_postgres_freezes_and_thaws(api: Live, postgres: Proxy) -> None:
    """It accepts and says nothing: what was sent to it is in doubt, and a retry settles it."""
    body = {"ids": ["a"], "true_labels": ["Basic Plan"]}
    known = api.predict(ids=["before"], true_labels=["Basic Plan"]).json()
    postgres.silence()
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        labelled = [pool.submit(api.predict, **body) for _ in range(2)]
        unlabelled = [pool.submit(api.predict) for _ in range(2)]
    assert time.monotonic() - started < api.settings.record_deadline + 5
    refuses_what_it_cant_store([answer.result() for answer in labelled])
    answers_what_it_cant_store([answer.result() for answer in unlabelled], known)
    assert api.client.get("/health").status_code == 200

    postgres.speak()
    eventually(lambda: api.predict(**body).status_code == 200)
    assert api.predict(**body).json()["counted"] == 0
    stored = api.stored()
    assert (stored["labels"], stored["request_ids"]) == (2, 2)


def refuses_what_it_cant_store(answers: list[httpx.Response]) -> None:
    """Nothing may be acknowledged that isn't stored."""
    for answer in answers:
        assert (answer.status_code, answer.json()["title"]) == (503, "Unavailable")
        assert int(answer.headers["retry-after"]) >= 1


def answers_what_it_cant_store(answers: list[httpx.Response], known: dict[str, Any]) -> None:
    """A prediction without a label is worth having though it isn't stored."""
    for answer in answers:
        assert (answer.status_code, answer.json()["prediction_ids"]) == (200, None)
        assert answer.json()["probabilities"] == known["probabilities"]
        assert answer.json()["counted"] == 0


def test_a_short_outage_is_waited_for_and_nobody_notices(api: Live, postgres: Proxy) -> None:
    postgres.down()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.predict, ids=["a"], true_labels=["Basic Plan"])
        time.sleep(0.3)
        postgres.up()
        assert answer.result().status_code == 200
    assert api.stored() == {"predictions": 1, "labels": 1, "request_ids": 1}


def test_connections_that_the_server_ended_fail_no_request(api: Live) -> None:
    """What a restart of Postgres does to the connections of the recorder and of the pool."""
    api.predict(ids=["a"])
    for turn in range(3):
        api.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert api.predict(true_labels=["Basic Plan"]).json()["counted"] == 1, turn
        assert api.client.get("/retrain/status").status_code == 200
        assert api.label({"id": "a", "true_label": f"Plan {turn}"}).status_code == 200
    assert api.stored() == {"predictions": 4, "labels": 6, "request_ids": 1}


@pytest.mark.parametrize("outage", [Proxy.down, Proxy.silence], ids=["stopped", "frozen"])
def test_without_redis_predictions_are_answered_and_recorded(
    api: Live, redis: Proxy, outage: Callable[[Proxy], None]
) -> None:
    outage(redis)
    for n in range(20):
        answer = api.predict(true_labels=["Basic Plan"])
        assert (answer.status_code, answer.json()["counted"]) == (200, 1), n
    assert api.stored()["labels"] == 20
    ready = api.client.get("/ready").json()
    assert ready["ready"] is True
    assert "Redis does not answer" in ready["redis"]
    status = api.client.get("/retrain/status").json()
    assert (status["current_count"], status["tally"]) == (20, None)
    redis.up() if outage is Proxy.down else redis.speak()
    eventually(lambda: api.client.get("/ready").json()["redis"] == "ok")
    assert api.settings.redis_url is not None
    with counter.connect(api.settings.redis_url.get_secret_value()) as client:
        before = counter.read_tally(client) or 0
        api.predict(true_labels=["Basic Plan"])
        eventually(lambda: (counter.read_tally(client) or 0) > before)
