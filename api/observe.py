"""What happens to every request, also to one that is refused: an id, a count, and at times a line."""

import random
import re
import time
from collections.abc import Awaitable, Iterable
from contextvars import ContextVar, copy_context

import structlog
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import REFUSAL, problem
from api.metrics import OTHER, PREDICT, Metrics, Route
from shared.errors import RatchetError

HEADER = b"x-request-id"
MAX_PATH = 200
"""Characters of a path in the log."""

WITH_ROWS = (PREDICT, "/labels")
"""Routes whose refusals are counted as rejected rows."""

log = structlog.get_logger()

_USABLE = re.compile(rb"[!-~]{1,128}")
_VERSION_4 = (0xF << 76) | (0x3 << 62)
_VERSION_4_IS = (0x4 << 76) | (0x2 << 62)


def _bound() -> ContextVar[str]:
    """The variable behind structlog's `bind_contextvars(request_id=…)`, which takes four times as long."""
    with structlog.contextvars.bound_contextvars(request_id=""):
        return next(found for found in copy_context() if found.name.endswith("request_id"))


_BOUND = _bound()


class Observe:
    """The whole app, watched from outside. It must cost next to nothing: every prediction pays for it.

    What the server refuses before there is a request (no HTTP, a head too long) doesn't get here.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, templates: Iterable[str], *, access_log: float
    ) -> None:
        """Stand before `app`.

        Args:
            app: what answers.
            metrics: hears of every answer.
            templates: the paths of its routes; all other paths are counted as one.
            access_log: share of the requests that get a line in the log.
        """
        self._app = app
        self.metrics = metrics
        self.share = access_log
        self._fixed: dict[str, tuple[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], tuple[str, Route]]] = []
        self._other = (OTHER, metrics.route(OTHER))
        for template in dict.fromkeys(templates):
            found = (template, metrics.route(template))
            if "{" in template:
                self._patterns.append((compile_path(template)[0], found))
            else:
                self._fixed[template] = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        _BOUND.set(request_id.decode("ascii"))
        exchange = _Exchange(self, scope, send, request_id)
        try:
            await self._app(scope, receive, exchange)
        except Exception:
            if not exchange.status:  # raised outside of what answers errors
                await problem(RatchetError("internal error"))(scope, receive, exchange)
            raise
        finally:
            exchange.end()

    def route(self, scope: Scope) -> tuple[str, Route]:
        """The template of a request's path, and what counts it."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        found = self._fixed.get(path)
        if found is not None:
            return found
        return next((found for pattern, found in self._patterns if pattern.match(path)), self._other)


class _Exchange:
    """One request with its answer: sends the answer on, and counts it once it is ready."""

    __slots__ = ("_begun", "_ended", "_observe", "_request_id", "_scope", "_send", "status")

    def __init__(self, observe: Observe, scope: Scope, send: Send, request_id: bytes) -> None:
        self.status = 0
        self._observe = observe
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._ended = False
        self._begun = time.perf_counter()

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (HEADER, self._request_id)]
        elif not message.get("more_body"):
            self.end()  # before it is sent: how fast a client reads is no matter of ours
        return self._send(message)

    def end(self) -> None:
        """Count the answer, once; a request without one, whose client went away, is not counted."""
        if self._ended or not self.status:
            return
        self._ended = True
        seconds = time.perf_counter() - self._begun
        template, route = self._observe.route(self._scope)
        route.answered(self.status, seconds)
        refusal = self._scope.get(REFUSAL)
        if refusal is not None and template in WITH_ROWS:
            self._observe.metrics.rejected(refusal)
        share = self._observe.share
        if share and (self.status >= 500 or random.random() < share):  # noqa: S311 - no secret
            self._write_line(template, seconds)

    def _write_line(self, template: str, seconds: float) -> None:
        client = self._scope.get("client")
        path = self._scope["path"][:MAX_PATH].encode("unicode_escape").decode("ascii")[:MAX_PATH]
        write = log.warning if self.status >= 500 else log.info
        write(
            "request",
            method=self._scope["method"],
            route=template,
            path=path,
            status=self.status,
            ms=round(1000 * seconds, 2),
            client=client[0] if client else None,
        )


def _request_id(scope: Scope) -> bytes:
    """The id that a request brings, if it can be used as one; else a new UUID, 32 hexadecimal digits."""
    for name, value in scope["headers"]:
        if name == HEADER:
            if _USABLE.fullmatch(value):
                given: bytes = value
                return given
            break
    # the operating system's randomness costs five times as much, and an id is no secret
    number = (random.getrandbits(128) & ~_VERSION_4) | _VERSION_4_IS
    return b"%032x" % number
