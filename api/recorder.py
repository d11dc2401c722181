"""Group commit: the rows of all requests in flight are written together by one task.

A request is answered only when its rows are committed. One statement carries the whole batch as JSON,
so that the work of taking it apart is done by Postgres and not by the one core that serves.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import psycopg
import structlog

from api.metrics import Metrics
from api.statements import write_batch
from api.writes import Recorded, Write
from shared.database import connect_options
from shared.errors import Invalid, Overloaded, RatchetError, Unavailable

BATCH_ROWS = 5000
RETRY_SECONDS = 0.05

log = structlog.get_logger()


@dataclass(kw_only=True)
class _Pending:
    write: Write
    future: "asyncio.Future[Recorded]"
    deadline: float = field(default=0.0)


class Recorder:
    """Writes predictions and their labels; every write ends within its deadline."""

    def __init__(
        self,
        url: str,
        *,
        deadline: float,
        on_labels: Callable[[int], None],
        max_rows: int = 20_000,
        metrics: Metrics | None = None,
    ) -> None:
        """Prepare to write to `url`.

        Args:
            deadline: longest a request waits, seconds.
            on_labels: hears of labels to count.
            max_rows: most rows that wait or are being written; a request alone may have more.
            metrics: hear of batches, of rows that wait, and of attempts that failed.
        """
        self._metrics = metrics or Metrics()
        self._url = url
        self._max_rows = max_rows
        self._rows = 0
        self._deadline = deadline
        self._on_labels = on_labels
        self._queue: list[_Pending] = []
        self._arrived = asyncio.Event()
        self._connection: psycopg.AsyncConnection | None = None
        self._abandoned: set[asyncio.Task[list[Recorded | RatchetError]]] = set()
        self._closing = False
        self._failing = False

    async def record(self, write: Write) -> Recorded:
        """Store one request's rows, all or none of them.

        Raises:
            Overloaded: too many rows wait already; nothing was written.
            Conflict: a caller's id is known with other features; nothing was written.
            Invalid: Postgres refused the data; nothing was written.
            Unavailable: Postgres did not confirm in time; the rows may or may not be stored.
        """
        if self._closing:
            raise Unavailable("this process is shutting down")
        pending = _Pending(write=write, future=asyncio.get_running_loop().create_future())
        rows = len(write.rows)
        if self._rows and self._rows + rows > self._max_rows:
            raise Overloaded("too many rows wait to be stored; nothing was written, send it again")
        self._rows += rows
        self._metrics.rows_queued(self._rows)
        pending.deadline = time.monotonic() + self._deadline
        self._queue.append(pending)
        self._arrived.set()
        return await pending.future

    async def run(self) -> None:
        """Write batches until closed and empty; whatever ends it, nobody waits for ever."""
        batch: list[_Pending] = []
        try:
            while not (self._closing and not self._queue):
                await self._arrived.wait()
                self._arrived.clear()
                while batch := self._take():
                    await self._write(batch)
        finally:
            self._closing = True
            left = [pending for pending in [*batch, *self._queue] if not pending.future.done()]
            self._answer(left, [Unavailable("this process is shutting down")] * len(left))
            await self._drop()

    def close(self) -> None:
        """Accept nothing more; `run` ends when what was accepted is written."""
        self._closing = True
        self._arrived.set()

    def _take(self) -> list[_Pending]:
        """The next batch; a request whose caller's id is already in it waits for the next."""
        batch: list[_Pending] = []
        later: list[_Pending] = []
        ids: set[str] = set()
        rows = 0
        for pending in self._queue:
            own = pending.write.caller_ids
            if (rows and rows + len(pending.write.rows) > BATCH_ROWS) or not ids.isdisjoint(own):
                later.append(pending)
                continue
            batch.append(pending)
            ids.update(own)
            rows += len(pending.write.rows)
        self._queue = later
        return batch

    async def _write(self, batch: Sequence[_Pending]) -> None:
        """Write a batch, again while only the connection fails; each request until its own deadline."""
        while batch := self._expire(batch):
            writes = [pending.write for pending in batch]
            left = min(pending.deadline for pending in batch) - time.monotonic()
            try:
                outcomes = await self._in_time(self._attempt(writes), left)
            except (psycopg.DataError, psycopg.IntegrityError) as exc:
                return await self._apart(batch, exc)
            except (psycopg.Error, OSError, TimeoutError) as exc:
                self._metrics.database_failed("recorder")
                self._note(exc)
                await self._drop()
                await asyncio.sleep(min(RETRY_SECONDS, left))
            else:
                self._note(None)
                self._metrics.batch_written(sum(len(write.rows) for write in writes))
                return self._answer(batch, outcomes)
        return None

    def _note(self, fault: Exception | None) -> None:
        """Say once that Postgres went away, and once that it is back."""
        if fault is not None and not self._failing:
            log.warning("predictions can't be recorded, trying again", error=str(fault).strip())
        elif fault is None and self._failing:
            log.warning("predictions are recorded again")
        self._failing = fault is not None

    def _expire(self, batch: Sequence[_Pending]) -> list[_Pending]:
        """Answer those whose time is over; the rest goes on."""
        now = time.monotonic()
        late = [pending for pending in batch if pending.deadline <= now]
        unsure = Unavailable("Postgres did not confirm in time; send it again with the same ids")
        self._answer(late, [unsure] * len(late))
        return [pending for pending in batch if pending.deadline > now]

    async def _in_time(
        self, attempt: Awaitable[list[Recorded | RatchetError]], seconds: float
    ) -> list[Recorded | RatchetError]:
        # A cancelled psycopg call waits for the server it can't reach, so a late one is left behind.
        task = asyncio.ensure_future(attempt)
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
        self._abandoned.add(task)
        task.add_done_callback(self._forget)
        self._connection = None
        raise TimeoutError

    def _forget(self, task: "asyncio.Task[list[Recorded | RatchetError]]") -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()

    async def _attempt(self, writes: Sequence[Write]) -> list[Recorded | RatchetError]:
        """Write on the one connection, or on a new one that becomes it unless this attempt came too late."""
        connection = self._connection
        if connection is None or connection.closed:
            options = connect_options("ratchet recorder", idle_ms=5000, lock_ms=1500)
            connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True, **options)
            if asyncio.current_task() in self._abandoned:
                await connection.close()
                return []
            self._connection = connection
        try:
            return await write_batch(connection, writes)
        finally:
            if self._connection is not connection:  # given up meanwhile: nobody else will close it
                await connection.close()

    async def _apart(self, batch: Sequence[_Pending], exc: psycopg.Error) -> None:
        """One request's data can't fail the others: write each alone."""
        if len(batch) > 1:
            for pending in batch:
                await self._write([pending])
            return
        log.error("Postgres refused a request's data", error=str(exc))
        self._answer(batch, [Invalid("Postgres refused the data of this request")])

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _answer(self, batch: Sequence[_Pending], outcomes: Sequence[Recorded | RatchetError]) -> None:
        labels = 0
        classes: list[str] = []
        for pending, outcome in zip(batch, outcomes, strict=True):
            self._rows -= len(pending.write.rows)
            if isinstance(outcome, Recorded):
                labels += outcome.new_labels
                classes += outcome.classes
            if pending.future.done():  # its client went away
                continue
            if isinstance(outcome, Recorded):
                pending.future.set_result(outcome)
            else:
                pending.future.set_exception(outcome)
        self._metrics.rows_queued(self._rows)
        self._metrics.labels_stored(classes)
        if labels:
            self._on_labels(labels)
