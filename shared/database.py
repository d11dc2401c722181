"""Engines and sessions on Postgres, and the schema's migrations."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from shared.errors import SettingsError, Unavailable
from shared.settings import Settings

Sessions = sessionmaker[Session]
MIN_SERVER = 16
CONNECT_TIMEOUT = 2
"""Seconds; a request that needs Postgres is refused within 2 s."""


def database_url(settings: Settings) -> str:
    """The URL that libpq understands.

    Raises:
        SettingsError: no database is configured.
    """
    if settings.database_url is None:
        raise SettingsError("RATCHET_DATABASE_URL: not set; `ratchet up` runs an embedded server")
    return settings.database_url.get_secret_value()


def sqlalchemy_url(url: str) -> str:
    """The same URL with psycopg named as the driver."""
    return "postgresql+psycopg://" + url.split("://", 1)[1]


def connect_options(name: str, *, idle_ms: int = 0, lock_ms: int = 0) -> dict[str, Any]:
    """libpq options: a name to see in pg_stat_activity, and limits that free what a frozen process holds.

    Args:
        name: shown as application_name.
        idle_ms: longest idle time inside a transaction, milliseconds; 0: none.
        lock_ms: longest wait for a lock, milliseconds; 0: none.
    """
    limits = f"-c idle_in_transaction_session_timeout={idle_ms} -c lock_timeout={lock_ms}"
    return {
        "application_name": name,
        "connect_timeout": CONNECT_TIMEOUT,
        "options": limits,
        "keepalives_idle": 5,
        "tcp_user_timeout": 10_000,
    }


def make_engine(url: str, *, name: str, idle_ms: int = 5000, lock_ms: int = 10_000, size: int = 5) -> Engine:
    """A pooled engine that survives a restart of Postgres. Make it after a fork, never before."""
    return create_engine(
        sqlalchemy_url(url),
        connect_args=connect_options(name, idle_ms=idle_ms, lock_ms=lock_ms),
        pool_pre_ping=True,
        pool_size=size,
        pool_timeout=CONNECT_TIMEOUT,
        hide_parameters=True,  # customers' features stay out of logs and of a job's error
    )


def make_sessions(engine: Engine) -> Sessions:
    """Sessions whose objects stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def is_cut_off(exc: DBAPIError) -> bool:
    """Whether an error is about the connection or the server, and not about what was asked.

    The end of a session that idled in a transaction comes as an internal error: its connection tells.
    """
    return isinstance(exc, OperationalError | InterfaceError) or exc.connection_invalidated


def ping(engine: Engine) -> None:
    """Ask Postgres something.

    Raises:
        Unavailable: it does not answer.
    """
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except OperationalError as exc:
        raise Unavailable("Postgres does not answer") from exc


@lru_cache(maxsize=1)
def _script_location() -> str:
    return str(Path(__file__).parent / "migrations")


def alembic_config(url: str) -> Config:
    """Alembic's configuration, without a file: it works from an installed wheel too."""
    config = Config()
    config.set_main_option("script_location", _script_location())
    config.attributes["url"] = url
    return config


def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`; safe from several processes at once.

    Raises:
        SettingsError: the server is older than Postgres 16.
    """
    check_server(url)
    command.upgrade(alembic_config(url), revision)


def check_schema(url: str) -> None:
    """Raise alembic's error when the tables in code and in the database differ."""
    command.check(alembic_config(url))


def check_server(url: str) -> None:
    """Refuse a Postgres older than 16.

    Raises:
        SettingsError: it is older.
        Unavailable: it does not answer.
    """
    engine = make_engine(url, name="ratchet check", size=1)
    try:
        with engine.connect() as connection:
            version = int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000
    except OperationalError as exc:
        reason = str(exc.orig).strip().splitlines()[0]
        raise Unavailable(f"RATCHET_DATABASE_URL: Postgres does not answer: {reason}") from None
    finally:
        engine.dispose()
    if version < MIN_SERVER:
        raise SettingsError(
            f"RATCHET_DATABASE_URL: Postgres {version} is too old; {MIN_SERVER} or newer is needed"
        )
