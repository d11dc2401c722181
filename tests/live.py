"""A served model with a database of its own: what a test sends, and what is stored then."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from shared import jobs
from shared.settings import Settings
from tests.conftest import Servers, Trained, _copy, make_settings
from tests.serving import example, serve
from worker.retrain import run_job
from worker.run import Context

TABLES = ("predictions", "labels", "request_ids")


@dataclass(frozen=True, kw_only=True)
class Live:
    """A running API, its settings, and a row that its model accepts."""

    client: httpx.Client
    settings: Settings
    row: dict[str, Any]

    def predict(self, rows: int | list[dict[str, Any]] = 1, **more: Any) -> httpx.Response:
        """Send rows, or so many copies of the example, to `/predict`."""
        given = [self.row] * rows if isinstance(rows, int) else rows
        return self.client.post("/predict", json={"raw_features": given, **more})

    def label(self, *labels: dict[str, Any]) -> httpx.Response:
        """Send labels to `/labels`."""
        return self.client.post("/labels", json={"labels": list(labels)})

    def stored(self) -> dict[str, int]:
        """How many rows each table that a request writes holds."""
        counts = ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in TABLES)
        return dict(self.query(f"SELECT {counts}")[0])

    def query(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Ask the database."""
        return query(self.settings, statement, *values)

    def execute(self, statement: str) -> None:
        """Change the database."""
        with _connect(self.settings) as connection:
            connection.execute(statement)  # type: ignore[call-overload]


def query(settings: Settings, statement: str, *values: Any) -> list[dict[str, Any]]:
    """The rows that a statement gives, on a connection of its own."""
    with _connect(settings) as connection:
        return connection.execute(statement, values or None).fetchall()  # type: ignore[call-overload]


def _connect(settings: Settings) -> psycopg.Connection[dict[str, Any]]:
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    return psycopg.connect(url, autocommit=True, row_factory=dict_row)


@contextmanager
def trained_settings(servers: Servers, trained: Trained, home: Path, **changes: Any) -> Iterator[Settings]:
    """Settings of a new database in which version 1 is live; `changes` override."""
    shutil.copytree(trained.artifacts, home / "artifacts")
    with contextmanager(_copy)(servers.postgres, trained.template) as url:
        yield make_settings(url, servers.redis, home, **changes)


@contextmanager
def live(settings: Settings) -> Iterator[Live]:
    """Serve what is live in the settings' database."""
    with serve(settings) as client:
        key = settings.api_keys
        assert key is None, "the example is read without a key"
        yield Live(client=client, settings=settings, row=example(client)["raw_features"][0])


def publish_another(context: Context) -> int:
    """Train and publish a version that differs from the one before; answers its number."""
    changes = {"seed": 1, "iterations": 5, "gate_tolerance": 1.0}
    with context.sessions.begin() as session:
        job, _ = jobs.request_by_admin(session, force=True, reason="another version")
    line = run_job(job.id, replace(context, settings=context.settings.model_copy(update=changes)))
    assert "published" in line, line
    with context.sessions() as session:
        return int(jobs.get(session, job.id).result["version"])
