"""Secrets stay secret: a stack with distinctive passwords and keys, and everything it leaves behind."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from cli.main import app as command
from shared.queue import make_celery
from shared.settings import Settings, load_settings
from tests.conftest import Servers, Trained
from tests.e2e.leftovers import SECRETS, Caller, Left, events, holds, stack, users, wait_until, with_user
from tests.live import query, trained_settings
from tests.processes import environment
from tests.proxy import Proxy, proxied
from tests.serving import example

READ = ("/", "/openapi.json", "/docs", "/model", "/models", "/retrain/status", "/retrain/jobs", "/ready")


def live_through(caller: Caller, settings: Settings, postgres: Proxy, redis: Proxy) -> None:
    """Traffic, refused keys, a job, a failing job, and both servers out of reach for a while."""
    wait_until(caller.answers, "the API is ready")
    body = send_traffic(caller)
    run_jobs(caller, settings)
    lose_servers(caller, settings, body, postgres, redis)
    for path in READ:
        caller.send("GET", path)


def send_traffic(caller: Caller) -> dict[str, Any]:
    """A prediction, a label, keys that are missing or wrong, and nonsense; answers the prediction's body."""
    client = caller.client
    client.headers["Authorization"] = f"Bearer {SECRETS['API key']}"
    body = example(client)
    del client.headers["Authorization"]
    caller.send("POST", "/predict", json={**body, "ids": ["mine"]})
    caller.send("POST", "/labels", json={"labels": [{"id": "mine", "true_label": "Basic Plan"}]})
    for path in ("/predict", "/labels", "/admin/retrain"):
        assert caller.send("POST", path, "key that a client sent", json={}).status_code == 403
        assert caller.send("POST", path, None, json={}).status_code == 401
    assert caller.send("POST", "/admin/retrain", "API key", json={}).status_code == 403
    caller.send("POST", "/predict", content=b"{nonsense")
    return body


def run_jobs(caller: Caller, settings: Settings) -> None:
    """A job that ends well, and one that fails."""

    def ask() -> Callable[[str], bool]:
        job = caller.send("POST", "/admin/retrain", "admin key", json={"force": True}).json()["job"]["id"]
        return lambda column: query(settings, f"SELECT {column} AS it FROM retrain_jobs WHERE id = {job}")[0][
            "it"
        ]

    job = ask()
    wait_until(lambda: job("state IN ('succeeded', 'rejected')"), "a job ends")
    parts = settings.home / "artifacts" / "parts"
    parts.rename(parts.with_name("aside"))
    parts.write_text("no folder")
    job = ask()
    wait_until(lambda: job("error IS NOT NULL"), "a job fails")


def lose_servers(
    caller: Caller, settings: Settings, body: dict[str, Any], postgres: Proxy, redis: Proxy
) -> None:
    """Redis, then Postgres too, out of reach for a while."""
    redis.down()
    caller.send("POST", "/predict", json=body)
    caller.send("GET", "/ready")
    postgres.down()
    for name in ("retrain1", "upkeep", "beat"):
        log = settings.home / "right" / f"{name}.log"
        wait_until(partial(holds, log, "Connection refused"), f"{name} misses Redis")
    for path in ("/ready", "/models", "/retrain/status"):
        caller.send("GET", path)
    assert caller.send("POST", "/predict", json=body).status_code == 503
    assert caller.send("POST", "/admin/retrain", "admin key", json={}).status_code == 503
    postgres.up()
    redis.up()
    wait_until(caller.answers, "the API is ready again")


def ask_command(settings: Settings, left: Left, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command prints, as text and as JSON."""
    with monkeypatch.context() as patch:
        for key, value in environment(settings).items():
            patch.setenv(key, value)
        load_settings.cache_clear()
        try:
            for subcommand in ("settings", "doctor", "status", "jobs"):
                # text too where it is not the JSON in a table, which may break a secret in two
                for form in ((), ("--json",)) if subcommand != "doctor" else (("--json",),):
                    result = CliRunner().invoke(command, [subcommand, *form])
                    left.add(f"command {name} {subcommand}", f"{result.output} {result.exception!r}")
            left.add("settings as text", f"{settings!r} {settings} {settings.model_dump_json()}")
        finally:
            load_settings.cache_clear()


def inspect(settings: Settings, left: Left) -> None:
    """What the workers tell Flower of themselves."""
    with make_celery(settings) as celery:

        def told(name: str) -> bool:
            found = getattr(celery.control.inspect(timeout=1.0), name)() or {}
            left.add(f"inspection {name}", json.dumps(found, default=str))
            return len(found) == 2

        for name in ("conf", "stats", "report"):
            wait_until(partial(told, name), f"both workers answer {name}")


QUICK = {
    "admin_keys": SecretStr(f"ops:{SECRETS['admin key']}"),
    "api_keys": SecretStr(SECRETS["API key"]),
    "log_level": "debug",
    "iterations": 3,
    "sweep_seconds": 1.0,
    "reconcile_seconds": 1.0,
    "threshold": 10**9,
}


@pytest.fixture(scope="module")
def left(servers: Servers, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    """Everything that a stack left behind which worked, and one whose passwords were wrong."""
    left, home = Left(), tmp_path_factory.mktemp("secrets")
    with ExitStack() as stays, pytest.MonkeyPatch.context() as monkeypatch:
        stays.enter_context(users(servers))
        direct = stays.enter_context(trained_settings(servers, trained, home, **QUICK))
        assert direct.database_url is not None
        assert direct.redis_url is not None
        urls = direct.database_url.get_secret_value(), direct.redis_url.get_secret_value()
        postgres, redis = (stays.enter_context(proxied(url)) for url in urls)

        def through(begin: str) -> Settings:
            return direct.model_copy(
                update={
                    "database_url": with_user(postgres.url, SECRETS[f"{begin}password of Postgres"]),
                    "redis_url": with_user(redis.url, SECRETS[f"{begin}password of Redis"]),
                }
            )

        right, wrong = through(""), through("wrong ")
        with events(direct, left), stack(right, left, "right") as url:
            with Caller(url, left) as caller:
                live_through(caller, direct, postgres, redis)
            reached = right.model_copy(update={"api_url": url})
            ask_command(reached, left, "right", monkeypatch)
            inspect(direct, left)
        with stack(wrong, left, "wrong", without=("retrain1",)) as url:
            for name, word in {"api": "does not answer", "upkeep": "password", "beat": "password"}.items():
                log = wrong.home / "wrong" / f"{name}.log"
                wait_until(partial(holds, log, word), f"{name} is refused")
            ask_command(wrong, left, "wrong", monkeypatch)
        for job in query(direct, "SELECT * FROM retrain_jobs"):
            left.add("row of a job", job)
        yield left


def test_no_secret_is_anywhere(left: Left) -> None:
    found = [
        (what, place, text[max(0, text.index(secret) - 100) :][:200])
        for place, text in left.texts.items()
        for what, secret in SECRETS.items()
        if secret in text
    ]
    assert found == []


@pytest.mark.parametrize(
    ("place", "holds"),
    [
        ("log right retrain1", "job failed"),
        ("log right retrain1", "Connected to redis://"),
        ("log right retrain1", "Cannot connect to redis://"),
        ("log right upkeep", "Cannot connect to redis://"),
        ("log right beat", "Connection refused"),
        ("log right api", "trying again"),
        ("log right api", '"level": "debug"'),
        ("log wrong upkeep", "invalid username-password pair"),
        ("log wrong beat", "invalid username-password pair"),
        ("log wrong api", "Postgres does not answer"),
        ("command wrong doctor", "password authentication failed"),
        ("command wrong doctor", "invalid username-password pair"),
        ("command right doctor", "loads and scores"),
        ("command right settings", "RATCHET_ADMIN_KEYS"),
        ("command right status", "model_version"),
        ("command line", "celery -A worker.app -q beat"),
        ("command line", "api.main:create_app"),
        ("settings as text", "SecretStr"),
        ("events task-received", "ratchet.retrain"),
        ("events task-progress", "step 8/12"),
        ("events task-failed", "parts"),
        ("inspection conf", "broker_url"),
        ("inspection stats", "transport"),
        ("row of a job", "'state': 'succeeded'"),
        ("row of a job", "FileExistsError"),
        ("answer POST /predict", "403"),
        ("answer POST /predict", "503"),
        ("answer GET /ready", "does not answer"),
    ],
)
def test_the_places_hold_what_could_have_named_one(left: Left, place: str, holds: str) -> None:
    assert holds in left.under(place), left.under(place)[-3000:]
