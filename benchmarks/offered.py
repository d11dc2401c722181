"""An open loop: requests are offered at a rate, whatever becomes of them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.load import Caller

TICK = 0.002
LAST_SECONDS = 10.0
"""What the last requests get to be answered."""


@dataclass(kw_only=True)
class Outcome:
    """What became of the requests: latencies in seconds of the accepted (200) and the refused ones (503
    with Retry-After), how many failed, and how many found no free connection."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failures: int = 0
    unsent: int = 0


class _Visitor(Caller):
    """Is idle until it is given a request, and afterwards again."""

    def __init__(self, outcome: Outcome, idle: "deque[_Visitor]") -> None:
        super().__init__()
        self._outcome = outcome
        self._idle = idle
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._idle.append(self)

    def visit(self, request: bytes) -> None:
        """Send a request."""
        self.busy = True
        self.send(request)

    def answered(self, head: bytes) -> None:
        self.busy = False
        latency = time.perf_counter() - self.sent
        if head.startswith(b"http/1.1 200"):
            self._outcome.accepted.append(latency)
        elif head.startswith(b"http/1.1 503") and b"\r\nretry-after: " in head:
            self._outcome.refused.append(latency)
        else:
            self._outcome.failures += 1
        self._idle.append(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._outcome.failures += self.busy  # idle for long, a connection may end
        if self in self._idle:
            self._idle.remove(self)

    def leave(self) -> None:
        """Go; a request that was never answered has failed."""
        self._transport.abort()  # type: ignore[attr-defined]


async def offer(
    port: int,
    requests: Iterator[bytes],
    rate: float,
    seconds: float,
    *,
    connections: int,
    look: Callable[[float, Outcome], None],
) -> Outcome:
    """Offer `rate` requests a second; `look` is called at every tick with the seconds gone by."""
    loop = asyncio.get_running_loop()
    outcome, idle = Outcome(), deque[_Visitor]()
    for _ in range(connections):
        await loop.create_connection(lambda: _Visitor(outcome, idle), "127.0.0.1", port)
    every = list(idle)
    start = time.perf_counter()
    due = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        look(elapsed, outcome)
        while due < elapsed * rate:
            due += 1
            request = next(requests)
            if idle:
                idle.popleft().visit(request)
            else:
                outcome.unsent += 1
        await asyncio.sleep(TICK)
    while any(visitor.busy for visitor in every) and time.perf_counter() - start < seconds + LAST_SECONDS:
        await asyncio.sleep(TICK)
    for visitor in every:
        visitor.leave()
    await asyncio.sleep(TICK)
    return outcome
