"""The rate of a key or an address is limited, by what Redis counts, and by nothing without Redis."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from shared import counter
from shared.settings import Settings
from tests.integration.test_admission import eventually
from tests.proxy import Proxy, proxied
from tests.serving import example, serve

KEYS = {"api_keys": SecretStr("alice:a,bob:b"), "admin_keys": SecretStr("ops:root")}


@contextmanager
def limited(settings: Settings, limit: str | None, **changes: Any) -> Iterator[httpx.Client]:
    """An API with a rate limit."""
    given = {"rate_limit": limit, "threshold": 10**9, "poll_seconds": 60.0, **changes}
    with serve(settings.model_copy(update=given)) as client:
        yield client


def get(client: httpx.Client, path: str = "/models", **headers: str) -> httpx.Response:
    """Ask, with headers."""
    return client.get(path, headers=headers)


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"authorization": f"Bearer {key}"}


def scripts_run(settings: Settings) -> int:
    """How many scripts Redis has run since its statistics were reset."""
    assert settings.redis_url is not None
    with counter.connect(settings.redis_url.get_secret_value()) as client:
        found: dict[str, Any] = client.info("commandstats")  # type: ignore[assignment]
    return sum(
        found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha", "script|load")
    )


def reset(settings: Settings) -> None:
    """Let Redis count its commands from here."""
    assert settings.redis_url is not None
    with counter.connect(settings.redis_url.get_secret_value()) as client:
        client.config_resetstat()


def test_each_key_has_a_rate_of_its_own(live_settings: Settings) -> None:
    with limited(live_settings, "3/hour", **KEYS) as client:
        statuses = [get(client, **bearer("a")).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        refused = get(client, "/", **bearer("a"))  # whatever it asks for
        assert refused.headers["content-type"] == "application/problem+json"
        assert (refused.status_code, refused.json()["title"]) == (429, "Too many requests")
        assert 3500 < int(refused.headers["retry-after"]) <= 3600
        predict = client.post("/predict", content=b"{", headers=bearer("a"))
        assert predict.status_code == 429  # before it is read
        assert get(client, "/no/such/path", **bearer("a")).status_code == 429
        assert [get(client, **bearer("b")).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert [get(client, **bearer("root")).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_a_wrong_key_is_refused_for_what_it_is(live_settings: Settings) -> None:
    with limited(live_settings, "1/hour", **KEYS) as client:
        assert [get(client, **bearer("wrong")).status_code for _ in range(3)] == [403] * 3
        assert [get(client).status_code for _ in range(3)] == [401] * 3
        assert get(client, **bearer("a")).status_code == 200


def test_where_no_key_is_needed_each_address_has_a_rate_of_its_own(live_settings: Settings) -> None:
    """The server trusts a proxy of its own host, and takes the address that it names."""
    with limited(live_settings, "2/hour") as client:
        one, other = {"x-forwarded-for": "192.0.2.1"}, {"x-forwarded-for": "2001:db8::1"}
        assert [get(client, **one).status_code for _ in range(3)] == [200, 200, 429]
        assert [get(client, **other).status_code for _ in range(3)] == [200, 200, 429]
        assert [get(client).status_code for _ in range(3)] == [200, 200, 429]


def test_health_and_readiness_are_never_refused(live_settings: Settings) -> None:
    with limited(live_settings, "1/hour") as client:
        assert [get(client).status_code for _ in range(2)] == [200, 429]
        for path in ("/health", "/ready"):
            assert [get(client, path).status_code for _ in range(3)] == [200] * 3


def test_after_the_seconds_that_a_refusal_names_it_passes(live_settings: Settings) -> None:
    with limited(live_settings, "1/second") as client:
        assert get(client).status_code == 200
        refused = get(client)
        while refused.status_code != 429:  # a slow machine: the second was over
            refused = get(client)
        assert refused.headers["retry-after"] == "1"
        time.sleep(1.01)
        assert get(client).status_code == 200


def test_two_apps_on_one_redis_count_together(live_settings: Settings) -> None:
    with limited(live_settings, "4/hour") as one, limited(live_settings, "4/hour") as other:
        statuses = [get(client).status_code for _ in range(3) for client in (one, other)]
        assert statuses == [200] * 4 + [429] * 2


@pytest.mark.parametrize("outage", [Proxy.down, Proxy.silence], ids=["stopped", "frozen"])
def test_without_redis_requests_pass_and_with_it_they_are_counted_again(
    live_settings: Settings, outage: Callable[[Proxy], None]
) -> None:
    assert live_settings.redis_url is not None
    with proxied(live_settings.redis_url.get_secret_value()) as proxy:
        through = {"redis_url": SecretStr(proxy.url)}
        with limited(live_settings, "3/hour", **through) as client:
            assert [get(client).status_code for _ in range(4)] == [200, 200, 200, 429]
            outage(proxy)
            assert [get(client).status_code for _ in range(50)] == [200] * 50
            proxy.up() if outage is Proxy.down else proxy.speak()
            eventually(lambda: get(client).status_code == 429)


def test_a_redis_that_takes_no_more_limits_nobody(live_settings: Settings) -> None:
    assert live_settings.redis_url is not None
    with limited(live_settings, "1/hour") as client:
        with counter.connect(live_settings.redis_url.get_secret_value()) as redis:
            redis.set("ratchet:rate:LIMITER/address/127.0.0.1/1/1/hour", "no list")
            assert [get(client).status_code for _ in range(3)] == [200] * 3
            redis.flushall()
        eventually(lambda: get(client).status_code == 429)


def test_off_it_asks_redis_nothing(live_settings: Settings) -> None:
    for limit, expected in ((None, 0), ("1000/second", 5)):
        with limited(live_settings, limit) as client:
            body = {"raw_features": example(client)["raw_features"]}
            client.post("/predict", json=body)
            reset(live_settings)
            assert [client.post("/predict", json=body).status_code for _ in range(5)] == [200] * 5
            assert scripts_run(live_settings) == expected
