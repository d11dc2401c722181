"""What must hold at every moment, looked at several times a second."""

import threading
import time
from types import TracebackType
from typing import Self

from psycopg import Error
from redis.exceptions import RedisError

from shared.counter import connect, redis_url
from tests.chaos.ledger import Ledger
from tests.chaos.promises import live_artifacts
from tests.chaos.stack import Stack

LOOK_SECONDS = 0.25
TAKEN_OVER_SECONDS = 30.0
BLOCKED_SECONDS = 10.0
_NOW = """
SELECT (SELECT count(*) FROM retrain_jobs WHERE state IN ('queued', 'running')) AS active,
       (SELECT count(*) FROM deployments d
         WHERE NOT EXISTS (SELECT 1 FROM deployments n WHERE n.previous_id = d.id)) AS heads,
       (SELECT max(extract(epoch FROM now() - lease_until)) FROM retrain_jobs
         WHERE state = 'running') AS silent,
       (SELECT max(extract(epoch FROM now() - state_change)) FROM pg_stat_activity
         WHERE wait_event_type = 'Lock' AND datname = current_database()) AS blocked
"""


class Watcher(threading.Thread):
    """Looks on for as long as the block lasts."""

    def __init__(self, stack: Stack, ledger: Ledger) -> None:
        super().__init__(name="watcher")
        self._stack = stack
        self._ledger = ledger
        self._redis = connect(redis_url(stack.settings))
        self._up_since = time.monotonic()
        self._done = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self.join()
        self._redis.close()

    def run(self) -> None:
        """Look, and note what is broken."""
        try:
            self._watch()
        except Exception as exc:
            self._ledger.breach(f"{self.name}: {exc!r}")
            raise

    def _watch(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            try:
                self._redis.ping()
                self._look()
            except (Error, RedisError, OSError):
                self._up_since = time.monotonic()

    def _look(self) -> None:
        (now,) = self._stack.query(_NOW)
        if now["active"] > 1:
            self._ledger.breach(f"{now['active']} jobs are active")
        if now["heads"] != 1:
            self._ledger.breach(f"{now['heads']} deployments are live")
        if (now["blocked"] or 0) > BLOCKED_SECONDS + 1:
            self._ledger.breach(f"somebody waited {now['blocked']} s for a lock")
        up = time.monotonic() - self._up_since
        if up > TAKEN_OVER_SECONDS and (now["silent"] or 0) > TAKEN_OVER_SECONDS:
            self._ledger.breach(f"a job's worker has been silent for {now['silent']} s")
        if not self._stack.spoiled.is_set():
            for what in live_artifacts(self._stack):
                if not self._stack.spoiled.is_set():
                    self._ledger.breach(what)
