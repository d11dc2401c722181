"""Counting new labels in Redis, in the background; at the threshold, asking for a job."""

import asyncio

import structlog
from celery import Celery
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from api.metrics import Metrics
from shared import counter, jobs
from shared.database import Sessions
from shared.queue import send_retrain
from shared.settings import Settings

COALESCE_SECONDS = 0.1

log = structlog.get_logger()


class Tally:
    """Adds labels to the tally, coalesced; no answer to a client ever waits for it."""

    def __init__(
        self, *, redis: Redis, celery: Celery, sessions: Sessions, settings: Settings, metrics: Metrics
    ) -> None:
        """Count into `redis`; request jobs through `sessions` and `celery`."""
        self._redis = redis
        self._celery = celery
        self._sessions = sessions
        self._settings = settings
        self._metrics = metrics
        self._pending = 0
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def add(self, labels: int) -> None:
        """Count labels that are committed; call it on the event loop."""
        self._pending += labels
        self._arrived.set()

    def add_from_thread(self, labels: int) -> None:
        """The same from a thread of a sync route."""
        if labels:
            self._loop.call_soon_threadsafe(self.add, labels)

    async def run(self) -> None:
        """Count for ever, at most ten round trips a second."""
        while True:
            await self._arrived.wait()
            await self.flush()
            await asyncio.sleep(COALESCE_SECONDS)

    async def flush(self) -> None:
        """Count what is pending now. A failure loses a hint, never a label: reconcile sets the tally."""
        self._arrived.clear()
        labels, self._pending = self._pending, 0
        if not labels:
            return
        try:
            counted = await counter.count(self._redis, labels, threshold=self._settings.threshold)
        except (RedisError, OSError) as exc:
            self._metrics.redis_failed("tally")
            log.warning("labels not tallied; reconcile will", labels=labels, error=type(exc).__name__)
            return
        if counted.latched:
            await asyncio.to_thread(self._request)

    async def close(self) -> None:
        """Close the connection to Redis."""
        await self._redis.aclose()

    def _request(self) -> None:
        try:
            with self._sessions.begin() as session:
                job_id = jobs.request_due(session, self._settings)
        except SQLAlchemyError as exc:
            self._metrics.database_failed("tally")
            log.warning("no job requested; the sweeper will", error=type(exc).__name__)
            return
        if job_id is not None:
            log.info("threshold reached, job requested", job_id=job_id)
            send_retrain(self._celery, self._sessions, job_id)
