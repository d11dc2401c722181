"""What a process counts about itself, and its text for Prometheus.

Every prediction pays for what is counted. So what comes with each is only put aside, and added up some
times a second and at each scrape.
"""

import asyncio
from collections import Counter as Tallied
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from api.histogram import BulkHistogram
from api.multiprocess import Place
from shared.errors import (
    FAULT_KINDS,
    Conflict,
    Forbidden,
    Invalid,
    NoModel,
    NotJSON,
    Overloaded,
    RatchetError,
    RequestTimeout,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)

T = TypeVar("T")

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
FLUSH_SECONDS = 0.2
OTHER = "other"
PREDICT = "/predict"
MAX_CLASSES = 100
"""So many classes have a series of their own, whatever clients call them."""

DATABASE_PLACES = ("recorder", "serving", "tally", "request")
REDIS_PLACES = ("tally", "rate_limit", "listener")

_ERRORS: tuple[type[RatchetError], ...] = (
    NotJSON,
    Unauthorized,
    Forbidden,
    RequestTimeout,
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    Invalid,
    TooManyRequests,
    Unavailable,
    Overloaded,
    NoModel,
    RatchetError,
)
REASONS: tuple[str, ...] = (*FAULT_KINDS, *(error.slug() for error in _ERRORS))
"""Why rows are rejected: what is wrong with a row, or the error of a request without such a row."""


class Route:
    """One route's answers."""

    def __init__(self, waiting: "deque[tuple[str, int, float]]", template: str) -> None:
        self._append = waiting.append
        self._template = template

    def answered(self, status: int, seconds: float) -> None:
        """An answer took so many seconds."""
        self._append((self._template, status, seconds))


class Metrics:
    """The figures of one process, or of one process among several that share theirs."""

    def __init__(self, place: Place | None = None) -> None:
        """Count from nothing, or from where the one before at this place stood.

        Args:
            place: among the processes of a replica; None: this is the only one.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._source = place or CollectorRegistry()
        # what lives in shared files is registered nowhere
        alone = self._source if isinstance(self._source, CollectorRegistry) else None
        # put aside, by any thread, until `flush`
        self._answers: deque[tuple[str, int, float]] = deque()
        self._scored: deque[int] = deque()
        self._stored: deque[str] = deque()
        self._written: deque[int] = deque()
        self._waiting = 0
        self._make_requests(alone)
        self._make_serving(alone)
        self._make_failures(alone)

    def _make_requests(self, to: CollectorRegistry | None) -> None:
        self._requests = Counter("ratchet_requests_total", "Answers.", ("route", "status"), registry=to)
        self._seconds = BulkHistogram(
            "ratchet_request_seconds",
            "Time until an answer was ready, seconds.",
            ("route",),
            registry=to,
            buckets=SECONDS,
        )
        for status in ("200", "500", "503"):  # from the start: a rate misses a series' first step
            self._requests.labels(PREDICT, status)
        self._seconds.labels(PREDICT)
        self._rows = Counter("ratchet_rows_total", "Rows that were scored and answered.", registry=to)
        self._rejected = Counter(
            "ratchet_rejected_rows_total",
            "Rows with a fault, by its kind; and requests to /predict or /labels that were refused without"
            " such a row, by the error.",
            ("reason",),
            registry=to,
        )
        self._reasons = {reason: self._rejected.labels(reason) for reason in REASONS}
        self._labels = Counter(
            "ratchet_labels_total",
            "Labels that were stored, corrections among them; classes no model here knew are one 'other'.",
            ("class",),
            registry=to,
        )
        self._other = self._labels.labels(OTHER)
        self._classes: dict[str, Counter] = {}

    def _make_serving(self, to: CollectorRegistry | None) -> None:
        self._batches = BulkHistogram(
            "ratchet_recorder_batch_rows",
            "Rows that were committed together.",
            registry=to,
            buckets=BATCH_ROWS,
        )
        self._queued = Gauge(
            "ratchet_recorder_queued_rows",
            "Rows that wait for Postgres or are being written.",
            registry=to,
            multiprocess_mode="livesum",
        )
        self._version = Gauge(
            "ratchet_model_version",
            "Version that is served; of several processes the least; 0: none.",
            registry=to,
            multiprocess_mode="livemin",
        )
        self._swaps = Counter(
            "ratchet_model_swaps_total",
            "Versions that were loaded, the first of a process among them; and attempts that failed.",
            ("result",),
            registry=to,
        )
        self._loaded, self._failed = self._swaps.labels("loaded"), self._swaps.labels("failed")
        self._fault = Gauge(
            "ratchet_model_fault",
            "1: a process can't load the live version and serves the one before.",
            registry=to,
            multiprocess_mode="livemax",
        )
        for gauge in (self._queued, self._version, self._fault):
            gauge.set(0)  # whoever had this place before may have left something

    def _make_failures(self, to: CollectorRegistry | None) -> None:
        database = Counter(
            "ratchet_database_errors_total", "Attempts that Postgres failed.", ("where",), registry=to
        )
        redis = Counter("ratchet_redis_errors_total", "Attempts that Redis failed.", ("where",), registry=to)
        self._database = {where: database.labels(where) for where in DATABASE_PLACES}
        self._redis = {where: redis.labels(where) for where in REDIS_PLACES}

    def route(self, template: str) -> Route:
        """What hears of a route's answers."""
        return Route(self._answers, template)

    def rows_answered(self, rows: int) -> None:
        """Rows were scored and answered."""
        self._scored.append(rows)

    def labels_stored(self, classes: Iterable[str]) -> None:
        """Labels were stored: the class of each."""
        self._stored.extend(classes)

    def batch_written(self, rows: int) -> None:
        """So many rows were committed together."""
        self._written.append(rows)

    def rows_queued(self, rows: int) -> None:
        """So many rows wait now."""
        self._waiting = rows

    async def run(self) -> None:
        """Flush for ever: nothing is put aside for long, and siblings know it."""
        while True:
            self.flush()
            await asyncio.sleep(FLUSH_SECONDS)

    def flush(self) -> None:
        """Add up what was put aside. On one thread at a time."""
        answers, scored, written = _taken(self._answers), _taken(self._scored), _taken(self._written)
        for (template, status), count in Tallied((entry[0], entry[1]) for entry in answers).items():
            self._requests.labels(template, str(status)).inc(count)
        for template in {entry[0] for entry in answers}:
            seconds = (entry[2] for entry in answers if entry[0] == template)
            self._seconds.labels(template).observe_all(seconds)
        self._rows.inc(sum(scored))
        for name, count in Tallied(_taken(self._stored)).items():
            self._classes.get(name, self._other).inc(count)
        self._batches.observe_all(written)
        self._queued.set(self._waiting)

    def rejected(self, error: RatchetError) -> None:
        """A request with rows was refused: each faulty row counts once, for the first of its faults."""
        rows: dict[int, str] = {}
        for fault in error.faults:
            if fault.row is not None:
                rows.setdefault(fault.row, fault.kind)
        for reason, count in Tallied(rows.values() or [error.slug()]).items():
            self._reasons.get(reason, self._reasons[OTHER]).inc(count)

    def swapped(self, version: int, classes: Sequence[str]) -> None:
        """Another version is served now; its classes get a series of their own, as long as there are few."""
        self._loaded.inc()
        self._version.set(version)
        for name in classes:
            if name not in self._classes and len(self._classes) < MAX_CLASSES:
                self._classes[name] = self._labels.labels(name)

    def swap_failed(self) -> None:
        """The live version can't be loaded."""
        self._failed.inc()
        self._fault.set(1)

    def swap_works(self) -> None:
        """What is live is served."""
        self._fault.set(0)

    def database_failed(self, where: str) -> None:
        """Postgres failed an attempt; `where` is one of `DATABASE_PLACES`."""
        self._database[where].inc()

    def redis_failed(self, where: str) -> None:
        """Redis failed an attempt; `where` is one of `REDIS_PLACES`."""
        self._redis[where].inc()

    def text(self, more: Iterable[Metric] = ()) -> bytes:
        """All figures of this replica in Prometheus' text format, with `more` after them.

        Those that were not flushed are missing: of other processes, the last `FLUSH_SECONDS`. With many
        processes and routes it takes some tens of milliseconds: call it from a thread.
        """
        return generate_latest(_Found([*self._source.collect(), *more]))


def _taken(waiting: "deque[T]") -> list[T]:
    """What is in a queue now, taken out; what other threads put in meanwhile is for the next time."""
    return [waiting.popleft() for _ in range(len(waiting))]


class _Found:
    """Metrics that are collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """They."""
        return self._metrics
