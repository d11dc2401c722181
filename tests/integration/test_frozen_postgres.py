"""Postgres freezes: what waits for it is answered in time, and keeps nothing else from being served."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy.orm import Session

from api import main
from shared import labels
from shared.database import make_engine
from shared.settings import Settings
from tests.integration.test_admission import eventually
from tests.integration.test_recorder import url_of
from tests.live import Live, live
from tests.proxy import Proxy, proxied

PLACES = 4
DEADLINE = 1.0


@pytest.fixture
def postgres(live_settings: Settings) -> Iterator[Proxy]:
    """The way from the API to Postgres."""
    with proxied(url_of(live_settings)) as proxy:
        yield proxy


@pytest.fixture
def api(live_settings: Settings, postgres: Proxy) -> Iterator[Live]:
    """An API with few places and a short deadline; the test itself reaches Postgres directly."""
    changes = {
        "database_url": SecretStr(postgres.url),
        "max_in_flight": PLACES,
        "request_deadline": DEADLINE,
        "threshold": 10**9,
    }
    with live(live_settings.model_copy(update=changes)) as found:
        yield Live(client=found.client, settings=live_settings, row=found.row)
        postgres.speak()  # whatever a test left frozen, the API can stop


def is_late(answer: httpx.Response) -> bool:
    """Whether an answer says that it is in doubt."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return (answer.status_code, answer.json()["title"], answer.headers["retry-after"]) == (
        503,
        "Unavailable",
        "1",
    )


def test_routes_that_wait_for_a_frozen_postgres_answer_in_time_and_all_recovers(
    api: Live, postgres: Proxy
) -> None:
    label = {"id": "mine", "true_label": "Family Plan"}
    api.predict(ids=["mine"])
    with ThreadPoolExecutor(PLACES) as pool:
        list(pool.map(lambda _: api.label({"id": "mine", "true_label": "Basic Plan"}), range(PLACES)))
        postgres.silence()
        stuck = list(pool.map(lambda _: api.label(label), range(PLACES)))
    assert all(is_late(answer) for answer in stuck)  # and no client waits for ever

    unlabelled = api.predict()
    assert (unlabelled.status_code, unlabelled.json()["prediction_ids"]) == (200, None)
    assert api.predict(true_labels=["Basic Plan"]).status_code == 503
    assert api.client.get("/health").status_code == 200
    assert api.client.get("/ready").status_code == 503
    assert api.client.get("/retrain/status").status_code == 503

    postgres.speak()
    eventually(lambda: api.client.get("/ready").status_code == 200)
    eventually(lambda: api.predict(true_labels=["Basic Plan"]).status_code == 200)
    for _ in range(PLACES + 1):
        eventually(lambda: api.client.get("/retrain/status").status_code == 200)
    assert api.label(label).json() == {"accepted": 0, "corrected": 0, "repeated": 1, "unknown": []}
    with ThreadPoolExecutor(PLACES) as pool:  # every place is free again
        answers = list(pool.map(lambda _: api.client.get("/models"), range(PLACES)))
    assert [answer.status_code for answer in answers] == [200] * PLACES


def test_what_is_left_behind_keeps_its_place_until_it_ends(api: Live, postgres: Proxy) -> None:
    """So what waits is bounded, and the places of predictions are others."""
    blocker = api.predict(ids=["mine"])
    assert blocker.status_code == 200
    with ThreadPoolExecutor(PLACES) as pool:
        list(pool.map(lambda _: api.client.get("/models"), range(PLACES)))
    postgres.silence()

    def is_full() -> bool:
        with ThreadPoolExecutor(PLACES) as pool:
            answers = list(pool.map(lambda _: api.client.get("/models"), range(PLACES)))
        assert {answer.status_code for answer in answers} == {503}
        return "Overloaded" in {answer.json()["title"] for answer in answers}

    eventually(is_full)
    assert api.predict().json()["prediction_ids"] is None
    assert api.client.get("/health").status_code == 200
    postgres.speak()
    eventually(lambda: api.client.get("/models").status_code == 200)


def test_an_api_that_stood_still_inside_a_transaction_answers_503_and_goes_on(
    live_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen and thawed, it finds that Postgres has ended its transaction."""
    plain = labels.put_labels

    def frozen(session: Session, given: list[tuple[UUID, str]]) -> list[labels.Put]:
        found = plain(session, given)
        time.sleep(0.5)
        return found

    monkeypatch.setattr(main, "make_engine", partial(make_engine, idle_ms=50))
    with live(live_settings.model_copy(update={"threshold": 10**9})) as api:
        api.predict(ids=["mine"])
        with monkeypatch.context() as patch:
            patch.setattr(labels, "put_labels", frozen)
            answer = api.label({"id": "mine", "true_label": "Basic Plan"})
        assert is_late(answer)
        assert api.stored()["labels"] == 0
        assert api.label({"id": "mine", "true_label": "Basic Plan"}).json()["accepted"] == 1
