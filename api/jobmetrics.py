"""Figures of labels and jobs, read from Postgres and Redis when somebody asks: all replicas say the same."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from psycopg.rows import dict_row
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from api.lookup import Lookup
from shared.counter import read_tally, redis_url
from shared.database import connect_options, database_url
from shared.jobs import STEPS
from shared.settings import Settings
from shared.tables import ACTIVE, JOB_STATES

SECONDS = 2.0
"""Longest that a scrape waits for Postgres or Redis."""

STATEMENT_MS = 1500
MOST_LABELS = 100_000
"""Waiting labels are counted up to here, or up to the threshold if that is more."""

SETTLED = tuple(state for state in JOB_STATES if state not in ACTIVE)

_WAITING = "job_id IS NULL AND superseded_at IS NULL"  # as in the index on waiting labels
_LABELS = f"""
SELECT (SELECT count(*) FROM (SELECT 1 FROM labels WHERE {_WAITING} LIMIT %s) AS first)::float
           AS waiting,
       coalesce((SELECT extract(epoch FROM now() - created_at) FROM labels WHERE {_WAITING}
                 ORDER BY id LIMIT 1), 0)::float AS oldest
"""  # noqa: S608 - constants of this module
_LIVE = """
SELECT v.version, extract(epoch FROM now() - v.created_at)::float AS age
FROM deployments d JOIN model_versions v ON v.version = d.champion ORDER BY d.id DESC LIMIT 1
"""
_ACTIVE = "SELECT state, failures, step_number FROM retrain_jobs WHERE state IN ('queued', 'running')"
_NEWEST = "SELECT coalesce(max(id), 0) AS id FROM retrain_jobs"
_ENDED = """
SELECT state, count(*) AS jobs, max(id) AS newest FROM retrain_jobs
WHERE id > %s AND state NOT IN ('queued', 'running') GROUP BY state
"""
_TRAINED = """
SELECT rows, result, log, started_at, finished_at FROM retrain_jobs
WHERE state IN ('succeeded', 'rejected') ORDER BY id DESC LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class JobFigures:
    """What Postgres says: rows of the statements above; None where there is no such row."""

    labels: Mapping[str, float]
    live: Mapping[str, Any] | None
    active: Mapping[str, Any] | None
    ended: Mapping[str, int]
    trained: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class TallyFigure:
    """What Redis says; None: it has lost the tally."""

    tally: int | None


@dataclass(kw_only=True)
class _Ended:
    """Jobs that ended, by result, up to an id: they stay as they are, so none is counted twice."""

    upto: int = 0
    jobs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SETTLED, 0))


class JobMetrics:
    """Asks Postgres and Redis, each at most once at a time."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is connected before somebody asks."""
        self._url = database_url(settings)
        self._threshold = settings.threshold
        self._ended = _Ended()
        self._redis = Redis.from_url(
            redis_url(settings),
            socket_timeout=1,
            socket_connect_timeout=1,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._postgres = Lookup(self._ask, name="postgres", faults=(psycopg.Error, OSError), seconds=SECONDS)
        faults = (RedisError, OSError, ValueError)
        self._tally = Lookup(self._ask_redis, name="redis", faults=faults, seconds=SECONDS)

    async def read(self) -> list[Metric]:
        """The metrics, within `SECONDS`; without those of a server that does not answer."""
        figures, tally = await asyncio.gather(self._postgres.answer(), self._tally.answer())
        found = [
            _gauge("database_up", "1: Postgres answers.", figures is not None),
            _gauge("redis_up", "1: Redis answers.", tally is not None),
            _gauge("threshold", "New labels that start a retrain.", self._threshold),
        ]
        if tally is not None:
            found.append(_gauge("tally", "New labels, as Redis counts them.", tally.tally))
        return [*found, *families(figures)] if figures is not None else found

    def close(self) -> None:
        """Close what is open."""
        self._redis.close()

    def _ask_redis(self) -> TallyFigure:
        return TallyFigure(tally=read_tally(self._redis))

    def _ask(self) -> JobFigures:
        """On a connection of its own: a pool that is used up, or full of frozen ones, doesn't matter here."""
        options = connect_options("ratchet metrics")
        options["options"] += f" -c statement_timeout={STATEMENT_MS}"
        with psycopg.connect(self._url, autocommit=True, row_factory=dict_row, **options) as connection:

            def one(statement: str, *values: object) -> Any:
                return connection.execute(statement, values or None).fetchone()

            if one(_NEWEST)["id"] < self._ended.upto:  # another database, from a backup
                self._ended = _Ended()
            for row in connection.execute(_ENDED, [self._ended.upto]).fetchall():
                self._ended.jobs[row["state"]] += row["jobs"]
                self._ended.upto = max(self._ended.upto, row["newest"])
            return JobFigures(
                labels=one(_LABELS, max(MOST_LABELS, self._threshold)),
                live=one(_LIVE),
                active=one(_ACTIVE),
                ended=dict(self._ended.jobs),
                trained=one(_TRAINED),
            )


def families(figures: JobFigures) -> Iterator[Metric]:
    """What Postgres says, as metrics."""
    live, active = figures.live, figures.active or {"state": None, "failures": 0, "step_number": 0}
    yield _gauge(
        "labels_waiting",
        f"Labels that no job has claimed, counted up to {MOST_LABELS} or the threshold.",
        figures.labels["waiting"],
    )
    yield _gauge(
        "oldest_waiting_label_seconds",
        "Age of the oldest label that waits, seconds; 0: none waits.",
        figures.labels["oldest"],
    )
    yield _gauge("live_version", "Version of the newest deployment; 0: none.", live["version"] if live else 0)
    yield _gauge("model_age_seconds", "Since the live version was trained.", live["age"] if live else None)
    ended = CounterMetricFamily("ratchet_jobs", "Jobs that ended, by result.", labels=["result"])
    for state, jobs in figures.ended.items():
        ended.add_metric([state], jobs)
    yield ended
    states = {state: state == active["state"] for state in ACTIVE}
    yield _gauges("job_active", "1: a job is in this state.", "state", states)
    yield _gauge("job_failures", "How often the active job failed so far.", active["failures"])
    yield _gauge("job_step", "Step of the active job, 1 to 12; 0: none.", active["step_number"])
    yield from _trained(figures.trained)


def _trained(job: Mapping[str, Any] | None) -> Iterator[Metric]:
    """Figures of the newest job that trained a model; without samples before the first."""
    whole, rows, scores, steps = None, {}, {}, {}
    if job is not None:
        whole = (job["finished_at"] - job["started_at"]).total_seconds()
        steps = step_seconds(job["log"], job["finished_at"])
        rows = {kind: rows for kind, rows in job["rows"].items() if _is_number(rows)}
        scores = {name: job["result"].get(f"{name}_f1") for name in ("challenger", "champion")}
    yield _gauges("last_job_step_seconds", "Time that each step of the last job took.", "step", steps)
    yield _gauge("last_job_seconds", "Time that the last job took, from its first claim to its end.", whole)
    yield _gauges("last_job_rows", "Rows of the last job, by what became of them.", "kind", rows)
    scores = {name: score for name, score in scores.items() if _is_number(score)}
    yield _gauges("last_job_f1", "Weighted F1 in the last job, on the same holdout rows.", "model", scores)


def step_seconds(log: Sequence[Mapping[str, Any]], finished: datetime) -> dict[str, float]:
    """How long each step of a job's last attempt took, by name; a step that was repeated adds up.

    Args:
        log: the job's log, oldest entry first.
        finished: when the job ended.
    """
    first = max((n for n, entry in enumerate(log) if entry["step"] == 1), default=0)
    times = [datetime.fromisoformat(entry["at"]) for entry in log[first:]]
    found: dict[str, float] = {}
    for entry, begun, ended in zip(log[first:], times, [*times, finished][1:], strict=True):
        name = STEPS[entry["step"] - 1]
        found[name] = found.get(name, 0.0) + (ended - begun).total_seconds()
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"ratchet_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"ratchet_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
