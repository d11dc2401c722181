"""`ratchet doctor`: checks every part, and says what to do about each that fails."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from celery.exceptions import CeleryError
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError
from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from api.serving import load_model
from cli.connection import connected
from cli.reports import print_json, table
from shared import registry
from shared.artifacts import ArtifactStore, Stored
from shared.counter import connect, redis_url
from shared.database import alembic_config, check_server, database_url, make_engine, make_sessions
from shared.errors import RatchetError
from shared.queue import RETRAIN_QUEUE, UPKEEP_QUEUE, make_celery
from shared.settings import Settings
from shared.tables import Part

ANSWER_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One part: fine, or what is wrong and what to do."""

    part: str
    ok: bool
    detail: str
    remedy: str = ""


class _Sick(Exception):
    """A part is not as it should be."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


def doctor(*, as_json: bool) -> int:
    """Print what is found; answers 1 if anything is wrong."""
    found = examine(connected())
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        made = table("part", "", "found", "what to do", wraps=("found", "what to do"))
        for finding in found:
            mark = "[green]ok[/]" if finding.ok else "[red]fails[/]"
            made.add_row(finding.part, mark, escape(finding.detail), escape(finding.remedy))
        Console().print(made)
    return int(not all(finding.ok for finding in found))


def examine(settings: Settings) -> list[Finding]:
    """Check every part, each for itself."""
    engine = make_engine(database_url(settings), name="ratchet doctor", size=1)
    checks: list[tuple[str, Callable[[], str], str]] = [
        ("database", lambda: _database(settings), "start Postgres, or correct RATCHET_DATABASE_URL"),
        ("schema", lambda: _schema(engine, settings), "run `ratchet migrate`"),
        ("redis", lambda: _redis(settings), "start Redis, or correct RATCHET_REDIS_URL"),
        ("workers", lambda: _workers(settings), "start the workers: `ratchet up` runs both"),
        ("artifacts", lambda: _artifacts(engine, settings), "restore the folder from a backup"),
        (
            "live model",
            lambda: _live(engine, settings),
            "restore its artifacts, or `ratchet retrain --force`",
        ),
    ]
    try:
        return [_check(*check) for check in checks]
    finally:
        engine.dispose()


def _check(part: str, check: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(part=part, ok=True, detail=check())
    except _Sick as exc:
        return Finding(part=part, ok=False, detail=str(exc), remedy=exc.remedy)
    except RatchetError as exc:
        return Finding(part=part, ok=False, detail=exc.detail, remedy=remedy)
    except (SQLAlchemyError, RedisError, CeleryError, BrokerError, OSError) as exc:
        reason = str(exc).strip().splitlines() or [type(exc).__name__]
        return Finding(part=part, ok=False, detail=reason[0], remedy=remedy)


def _database(settings: Settings) -> str:
    check_server(database_url(settings))
    return "answers"


def _schema(engine: Engine, settings: Settings) -> str:
    head = ScriptDirectory.from_config(alembic_config(database_url(settings))).get_current_head()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current != head:
        raise _Sick(f"at revision {current}, the head is {head}", "run `ratchet migrate`")
    return f"at its head, {head}"


def _redis(settings: Settings) -> str:
    with connect(redis_url(settings)) as client:
        client.ping()
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
    if policy != "noeviction":
        raise _Sick(f"maxmemory-policy is {policy}", "set it to noeviction: messages must not be evicted")
    return "answers"


def _workers(settings: Settings) -> str:
    with make_celery(settings) as celery:
        found = celery.control.inspect(timeout=ANSWER_SECONDS).active_queues() or {}
    served = {queue["name"] for queues in found.values() for queue in queues}
    missing = {RETRAIN_QUEUE, UPKEEP_QUEUE} - served
    if missing:
        names = " and ".join(sorted(missing))
        raise _Sick(f"no worker answers for {names}", f"start one: celery -A worker.app worker -Q {names}")
    return ", ".join(sorted(found))


def _artifacts(engine: Engine, settings: Settings) -> str:
    store = ArtifactStore(settings.artifacts)
    with make_sessions(engine)() as session:
        kept = [v for v in registry.versions(session) if v.artifacts_removed_at is None]
        parts = list(session.scalars(select(Part)))
    files = 0
    for version in kept:
        for name in store.manifest(version.artifact_key):
            store.read(version.artifact_key, name)
            files += 1
    for part in parts:
        store.check_file(part.key, Stored(size=part.size, sha256=part.sha256))
    return f"{files} files of {len(kept)} versions and {len(parts)} dataset parts match their checksums"


def _live(engine: Engine, settings: Settings) -> str:
    with make_sessions(engine)() as session:
        live = registry.live(session)
    if live is None:
        raise _Sick("no model yet", "run `ratchet bootstrap FILE --target COLUMN`")
    model = load_model(live, ArtifactStore(settings.artifacts))
    return f"version {model.version} loads and scores"
