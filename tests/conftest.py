"""Real servers for every test that needs them: given by URL, else containers, else embedded."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from cli.data import plans
from cli.embedded import EmbeddedPostgres, EmbeddedValkey
from shared.artifacts import ArtifactStore
from shared.counter import connect
from shared.database import Sessions, make_engine, make_sessions, migrate
from shared.queue import make_celery
from shared.settings import Settings
from worker.bootstrap import bootstrap
from worker.inference import infer
from worker.retrain import run_job
from worker.run import Context

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background job: what tests start would inherit it, and Ctrl-C stop nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)

ADMIN_KEY = "test-admin-key"
BOOTSTRAP_ROWS = 1200
TARGET = "recommended_plan"


@dataclass(frozen=True, kw_only=True)
class Servers:
    """URLs of a Postgres (any database of it) and a Redis."""

    postgres: str
    redis: str


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """By URL (RATCHET_TEST_…), else testcontainers where an engine answers, else embedded."""
    postgres, redis = os.environ.get("RATCHET_TEST_DATABASE_URL"), os.environ.get("RATCHET_TEST_REDIS_URL")
    if postgres and redis:
        yield Servers(postgres=postgres, redis=redis)
    elif _engine_answers():
        yield from _containers()
    else:
        yield from _embedded(tmp_path_factory.mktemp("servers"))


@pytest.fixture(scope="session")
def schema_template(servers: Servers) -> Iterator[str]:
    """Name of a migrated, empty database to copy."""
    name = f"template_{uuid4().hex[:8]}"
    _execute(servers.postgres, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    migrate(_database(servers.postgres, name))
    yield name
    _drop(servers.postgres, name)


@pytest.fixture
def database_url(servers: Servers, schema_template: str) -> Iterator[str]:
    """A database of its own for one test, migrated and empty."""
    yield from _copy(servers.postgres, schema_template)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """An empty Redis."""
    with connect(servers.redis) as client:
        client.flushall()
    return servers.redis


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings for quick jobs on servers of the test's own."""
    return make_settings(database_url, redis_url, tmp_path)


@pytest.fixture
def sessions(settings: Settings) -> Iterator[Sessions]:
    """Sessions on the test's database."""
    yield from _sessions(settings)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A template database with version 1 live, and its artifacts."""

    template: str
    artifacts: Path


@pytest.fixture(scope="session")
def trained(
    servers: Servers, schema_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    """Version 1, trained once on 1,200 rows of plans, to be copied by every test that needs a model."""
    name, home = f"trained_{uuid4().hex[:8]}", tmp_path_factory.mktemp("trained")
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    _execute(servers.postgres, create.format(sql.Identifier(name), sql.Identifier(schema_template)))
    made = make_settings(_database(servers.postgres, name), servers.redis, home)
    for made_sessions in _sessions(made):
        frame = plans(BOOTSTRAP_ROWS)
        context = make_context(made, made_sessions)
        job = bootstrap(frame, infer(frame, target=TARGET), sessions=made_sessions, store=context.store)
        assert "version 1 published" in run_job(job, context)
    yield Trained(template=name, artifacts=home / "artifacts")
    _drop(servers.postgres, name)


@pytest.fixture
def live_settings(servers: Servers, trained: Trained, redis_url: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database of the test's own in which version 1 is live."""
    shutil.copytree(trained.artifacts, tmp_path / "artifacts")
    for url in _copy(servers.postgres, trained.template):
        yield make_settings(url, redis_url, tmp_path)


@pytest.fixture
def live_sessions(live_settings: Settings) -> Iterator[Sessions]:
    """Sessions on that database."""
    yield from _sessions(live_settings)


@pytest.fixture
def context(live_settings: Settings, live_sessions: Sessions) -> Context:
    """What a worker has, with version 1 live."""
    return make_context(live_settings, live_sessions)


def make_settings(database_url: str, redis_url: str, home: Path, **changes: object) -> Settings:
    """Settings with small models; `changes` override."""
    values: dict[str, object] = {
        "database_url": SecretStr(database_url),
        "redis_url": SecretStr(redis_url),
        "home": home,
        "admin_keys": SecretStr(f"tester:{ADMIN_KEY}"),
        "threshold": 50,
        "iterations": 20,
        "threads": 1,
        "min_class_rows": 5,
        "poll_seconds": 0.2,
        "log_level": "warning",
    }
    return Settings.model_validate({**values, **changes})


def make_context(settings: Settings, sessions: Sessions) -> Context:
    """What a worker process has."""
    return Context(
        settings=settings,
        sessions=sessions,
        store=ArtifactStore(settings.artifacts),
        redis=connect(settings.redis_url.get_secret_value() if settings.redis_url else ""),
        celery=make_celery(settings),
    )


def _sessions(settings: Settings) -> Iterator[Sessions]:
    assert settings.database_url is not None
    engine = make_engine(settings.database_url.get_secret_value(), name="test")
    try:
        yield make_sessions(engine)
    finally:
        engine.dispose()


def _copy(server: str, template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex[:12]}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    _execute(server, create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield _database(server, name)
    finally:
        _drop(server, name)


def _drop(server: str, name: str) -> None:
    _execute(server, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _execute(server: str, statement: sql.Composed) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)


def _database(server: str, name: str) -> str:
    return server.rsplit("/", 1)[0] + "/" + name


def _embedded(folder: Path) -> Iterator[Servers]:
    postgres, valkey = EmbeddedPostgres(folder), EmbeddedValkey(folder)
    try:
        yield Servers(postgres=postgres.start(), redis=valkey.start())
    finally:
        for server in (valkey, postgres):
            server.stop()
            server.remove()


def _engine_answers() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    return subprocess.run([docker, "version"], capture_output=True, check=False).returncode == 0


def _containers() -> Iterator[Servers]:
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.community.redis import RedisContainer

    with PostgresContainer("postgres:17", driver=None) as postgres, RedisContainer("redis:8") as redis:
        host, port = redis.get_container_host_ip(), redis.get_exposed_port(6379)
        yield Servers(postgres=postgres.get_connection_url(), redis=f"redis://{host}:{port}/0")
