"""Without Postgres or Redis `/metrics` answers soon, says so, and leaves out what it can't know."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from cli.ports import free_port
from shared import counter
from shared.settings import Settings
from tests.integration.test_admission import eventually
from tests.integration.test_metrics import OF_POSTGRES, OF_REDIS, OF_THE_PROCESS, names_of, scrape, value
from tests.integration.test_recorder import url_of
from tests.live import Live, live
from tests.proxy import Proxy, proxied
from tests.serving import serve


@pytest.mark.parametrize("outage", [Proxy.down, Proxy.silence], ids=["stopped", "frozen"])
def test_without_postgres_the_rest_is_told(live_settings: Settings, outage: Callable[[Proxy], None]) -> None:
    with proxied(url_of(live_settings)) as proxy:
        changes = {
            "database_url": SecretStr(proxy.url),
            "request_deadline": 0.5,
            "max_in_flight": 4,
            "threshold": 10**9,
            "poll_seconds": 0.1,
        }
        with live(live_settings.model_copy(update=changes)) as api:
            assert value(scrape(api.client), "database_up") == 1
            outage(proxy)
            with ThreadPoolExecutor(8) as pool:  # threads that wait for Postgres keep it from nobody
                list(pool.map(lambda _: api.client.get("/models"), range(8)))
            for _ in range(2):
                assert set(names_of(api.client)) == set({**OF_THE_PROCESS, **OF_REDIS})
            answered = api.predict()
            assert (answered.status_code, answered.json()["prediction_ids"]) == (200, None)
            found = scrape(api.client)
            assert (value(found, "database_up"), value(found, "redis_up")) == (0, 1)
            assert value(found, "model_version") == 1
            assert value(found, "requests_total", "/models", "503") == 8
            assert value(found, "database_errors_total", "recorder") >= 1
            proxy.up() if outage is Proxy.down else proxy.speak()
            eventually(lambda: value(scrape(api.client), "database_up") == 1)
            assert set(names_of(api.client)) == set({**OF_THE_PROCESS, **OF_REDIS, **OF_POSTGRES})
            if outage is Proxy.down:
                assert value(scrape(api.client), "database_errors_total", "serving") >= 1


def test_rows_that_wait_for_a_frozen_postgres_are_told(live_settings: Settings) -> None:
    with proxied(url_of(live_settings)) as proxy:
        changes = {"database_url": SecretStr(proxy.url), "record_deadline": 30.0, "threshold": 10**9}
        with live(live_settings.model_copy(update=changes)) as api, ThreadPoolExecutor(2) as pool:
            api.predict()
            proxy.silence()
            waiting = [pool.submit(api.predict, 3)]
            eventually(lambda: value(scrape(api.client), "recorder_queued_rows") == 3)
            waiting.append(pool.submit(api.predict, 4))  # behind the one that is being written
            eventually(lambda: value(scrape(api.client), "recorder_queued_rows") == 7)
            proxy.speak()
            assert [len(answer.result().json()["prediction_ids"]) for answer in waiting] == [3, 4]
            eventually(lambda: value(scrape(api.client), "recorder_queued_rows") == 0)


@pytest.mark.parametrize("outage", [Proxy.down, Proxy.silence], ids=["stopped", "frozen"])
def test_without_redis_the_rest_is_told(live_settings: Settings, outage: Callable[[Proxy], None]) -> None:
    assert live_settings.redis_url is not None
    with proxied(live_settings.redis_url.get_secret_value()) as proxy:
        changes = {
            "redis_url": SecretStr(proxy.url),
            "rate_limit": "100000/second",
            "threshold": 10**9,
            "poll_seconds": 0.1,
        }
        with live(live_settings.model_copy(update=changes)) as api:
            assert value(scrape(api.client), "redis_up") == 1
            outage(proxy)
            api.predict(true_labels=["Basic Plan"])
            assert set(names_of(api.client)) == set({**OF_THE_PROCESS, **OF_POSTGRES})
            eventually(lambda: value(scrape(api.client), "redis_errors_total", "tally") >= 1)
            found = scrape(api.client)
            assert (value(found, "database_up"), value(found, "redis_up")) == (1, 0)
            assert value(found, "redis_errors_total", "rate_limit") >= 1
            if outage is Proxy.down:
                eventually(lambda: value(scrape(api.client), "redis_errors_total", "listener") >= 1)
            proxy.up() if outage is Proxy.down else proxy.speak()
            eventually(lambda: value(scrape(api.client), "redis_up") == 1)


def test_a_redis_that_lost_the_tally_is_up_and_has_none_to_tell(own_api: Live) -> None:
    own_api.predict(true_labels=["Basic Plan"])
    eventually(lambda: scrape(own_api.client).get("ratchet_tally") == {(): 1.0})
    assert own_api.settings.redis_url is not None
    with counter.connect(own_api.settings.redis_url.get_secret_value()) as redis:
        redis.flushall()
    found = scrape(own_api.client)
    assert "ratchet_tally" not in found
    assert value(found, "redis_up") == 1
    nobody = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    with serve(own_api.settings.model_copy(update={"redis_url": nobody})) as client:
        assert value(scrape(client), "redis_up") == 0
