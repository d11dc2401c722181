"""Who is let in: requests in flight are bounded, and all but `/predict` have a deadline.

It lies around the whole app and decides before a body is read, so that a refusal costs next to nothing.
"""

import asyncio
import math
import time
from collections.abc import Iterable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem
from shared.errors import Overloaded, Unavailable
from shared.settings import Settings

OPEN = ("/health", "/ready")
"""For everybody, and never refused for what others do: whoever asks wants to know how it is."""

METRICS = "/metrics"
UNLIMITED = (*OPEN, METRICS)
"""No rate limits them."""

SCRAPES = 4
"""At once in one process; each has a deadline of its own."""

OPEN_SECONDS = 5.0
"""Longest that they take: whoever asks does not wait long."""

LARGE_BODIES = 8
"""So many bodies of the largest size may be in flight; smaller ones by their bytes."""

UNDECLARED_SHARE = 8
"""A body that doesn't say its length may have this part of the largest size, and counts as that."""

SMALL_BODY = 64 * 1024
"""Bytes. Such bodies are bounded by their number alone: the server reads that much of any body unasked."""

QUIET_SECONDS = 10.0
"""Between two lines in the log about refusals."""

log = structlog.get_logger()

_BUSY = problem(Overloaded("too many requests at once; nothing was written, send it again"))
_LATE = problem(
    Unavailable("it could not be answered in time; what was asked may have been done: send it again")
)


class _Lane:
    """Requests of one kind in flight, and the bytes of their large bodies."""

    def __init__(self, *, requests: float, max_bytes: float, deadline: float | None) -> None:
        self.deadline = deadline
        self._requests = 0
        self._bytes = 0
        self._max_requests = requests
        self._max_bytes = max_bytes

    def enter(self, size: int) -> bool:
        """Take a place, if one is free."""
        if self._requests >= self._max_requests or (size and self._bytes + size > self._max_bytes):
            return False
        self._requests += 1
        self._bytes += size
        return True

    def leave(self, size: int) -> None:
        """Give the place back."""
        self._requests -= 1
        self._bytes -= size


class _Reply:
    """A response on its way; given up, what still comes of it is dropped."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self.given_up = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        if not self.given_up:
            self.started = True
            await self._send(message)


class Admission:
    """The app with its bounds. `/predict` and the rest are counted apart.

    Routes that wait for a frozen Postgres so never keep a prediction out.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Stand before `app`."""
        self._app = app
        self._max_body = settings.max_body
        most, deadline = settings.max_in_flight, settings.request_deadline
        large = LARGE_BODIES * settings.max_body
        self._others = _Lane(requests=most, max_bytes=large, deadline=deadline)
        soon = min(deadline, OPEN_SECONDS)
        self._lanes = {
            "/predict": _Lane(requests=most, max_bytes=large, deadline=None),
            "/health": _Lane(requests=math.inf, max_bytes=math.inf, deadline=soon),
            # apart too, and bounded: while Postgres is frozen those who ask would pile up
            "/ready": _Lane(requests=most, max_bytes=large, deadline=soon),
            METRICS: _Lane(requests=SCRAPES, max_bytes=large, deadline=None),
        }
        self._left_behind: set[asyncio.Future[None]] = set()
        self._quiet_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it unread."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lane = self._lanes.get(scope["path"].removeprefix(scope.get("root_path", "")), self._others)
        size = _size(scope["headers"], self._max_body)
        if not lane.enter(size):
            self._note()
            await _BUSY(scope, receive, send)
        elif lane.deadline is None:  # the recorder has its own, so have a scrape and a body that is awaited
            try:
                await self._app(scope, receive, send)
            finally:
                lane.leave(size)
        else:
            reply = _Reply(send)
            task = asyncio.ensure_future(self._app(scope, receive, reply))
            task.add_done_callback(lambda _: lane.leave(size))
            if not await self._in_time(task, reply, lane.deadline):
                await _LATE(scope, receive, send)

    async def _in_time(self, task: "asyncio.Future[None]", reply: _Reply, seconds: float) -> bool:
        """Wait for a request. A thread that waits for Postgres can't be stopped, so it is left behind."""
        try:
            await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done() or reply.started:
            await task
            return True
        reply.given_up = True
        self._left_behind.add(task)  # it keeps its place until it ends
        task.add_done_callback(self._forget)
        return False

    def _forget(self, task: "asyncio.Future[None]") -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()

    def _note(self) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            log.warning("too many requests, or too large ones, at once: some are refused")
            self._quiet_until = now + QUIET_SECONDS


def undeclared_limit(max_body: int) -> int:
    """Most bytes of a body that doesn't say its length."""
    return max_body // UNDECLARED_SHARE


def _size(headers: Iterable[tuple[bytes, bytes]], max_body: int) -> int:
    """What a request's body counts for, bytes; an unknown length counts as an eighth of the largest."""
    for name, value in headers:
        if name == b"content-length":
            length = int(value) if value.isdigit() and len(value) < 20 else max_body
            return min(length, max_body) if length > SMALL_BODY else 0
        if name == b"transfer-encoding":
            return undeclared_limit(max_body)
    return 0
