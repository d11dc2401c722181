"""The rate of each caller, counted in Redis by the library `limits`. Without Redis nobody is refused."""

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout
from starlette.types import ASGIApp, Receive, Scope, Send

from api.admission import UNLIMITED
from api.auth import Keys
from api.errors import problem
from api.metrics import Metrics
from shared.counter import redis_url
from shared.errors import Forbidden, TooManyRequests, Unauthorized
from shared.settings import Settings

PREFIX = "ratchet:rate"
CONNECTIONS = 16
PATIENCE = 0.1
"""Longest that a request waits for Redis, seconds."""

GRACE = 10
"""Turns of a busy event loop in which an answer that is there already is still read."""

PAUSE = 1.0
"""So long a Redis that failed is not asked again, seconds."""

log = structlog.get_logger()


class RateLimit:
    """The app behind a limit per key, or per address where no key is needed.

    The window moves: in no span of that length are more requests let in. It holds for all processes that
    share a Redis.
    """

    def __init__(self, app: ASGIApp, settings: Settings, limit: str, metrics: Metrics) -> None:
        """Stand before `app`; `limit` as in `RATCHET_RATE_LIMIT`. Nothing is connected yet."""
        self._app = app
        self._metrics = metrics
        self._limit: RateLimitItem = parse(limit)
        self._text = limit
        admins, callers = Keys.parse(settings.admin_keys, "admin"), Keys.parse(settings.api_keys, "api")
        self._keys = Keys(entries=(*admins.entries, *callers.entries))
        self._key_needed = bool(callers.entries)
        self._pool = BlockingConnectionPool.from_url(
            redis_url(settings), max_connections=CONNECTIONS, timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._storage = RedisStorage(
            "redis://",
            implementation="redispy",
            key_prefix=PREFIX,
            connection_pool=self._pool,  # type: ignore[arg-type]  # it takes one
        )
        self._limiter = MovingWindowRateLimiter(self._storage)
        self._failing = False
        self._paused_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it unread."""
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                await self._pool.aclose()
            return
        if scope["path"].removeprefix(scope.get("root_path", "")) not in UNLIMITED:
            caller = self._caller(scope)
            refused = await self._refusal(*caller) if caller else None
            if refused is not None:
                await problem(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> tuple[str, str] | None:
        """Whose rate counts; nobody's if the request will be refused for its key."""
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        try:
            return "key", self._keys.who(header.decode("latin-1"))
        except (Unauthorized, Forbidden):
            client = scope.get("client")
            return None if self._key_needed else ("address", client[0] if client else "")

    async def _refusal(self, *caller: str) -> TooManyRequests | None:
        now = time.monotonic()
        if now < self._paused_until:
            return None
        if self._failing:  # one request asks whether Redis is back; the others pass meanwhile
            self._paused_until = now + PAUSE
        try:
            seconds = await _patiently(self._ask(*caller))
        except (RedisError, OSError) as exc:
            self._paused_until = time.monotonic() + PAUSE
            self._metrics.redis_failed("rate_limit")
            self._note(exc)
            return None
        self._note(None)
        if seconds is None:
            return None
        return TooManyRequests(
            f"RATCHET_RATE_LIMIT allows {self._text} from one {caller[0]}", retry_after=seconds
        )

    async def _ask(self, *caller: str) -> int | None:
        """None, and it is counted; or in how many whole seconds the next one may pass."""
        if await self._limiter.hit(self._limit, *caller):
            return None
        window = await self._limiter.get_window_stats(self._limit, *caller)
        return max(1, math.ceil(window.reset_time - time.time()))

    def _note(self, fault: Exception | None) -> None:
        """Say once that Redis went away, and once that it is back."""
        if fault is not None and not self._failing:
            log.warning("no rate is limited, Redis does not answer", error=type(fault).__name__)
        elif fault is None and self._failing:
            log.warning("rates are limited again")
            self._paused_until = 0.0
        self._failing = fault is not None


async def _patiently(asking: Coroutine[Any, Any, int | None]) -> int | None:
    """The answer, if it comes within `PATIENCE`.

    Raises:
        RedisTimeout: it did not, and not because this process had no time to read it.
    """
    task = asyncio.ensure_future(asking)
    await asyncio.wait({task}, timeout=PATIENCE)
    for _ in range(GRACE):
        if task.done():
            return task.result()
        await asyncio.sleep(0)
    task.add_done_callback(lambda late: late.cancelled() or late.exception())
    task.cancel()
    raise RedisTimeout
