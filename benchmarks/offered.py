"""An open loop: requests are offered at a rate, whatever becomes of them."""

import asyncio
import time
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

    def __init__(self, outcome: Outcome, idle: "list[_Visitor]") -> None:
        super().__init__()
        self._outcome = outcome
        self._idle = idle

    def answered(self, head: bytes) -> None:
        latency = time.perf_counter() - self.sent
        if head.startswith(b"http/1.1 200"):
            self._outcome.accepted.append(latency)
        elif head.startswith(b"http/1.1 503") and b"\r\nretry-after: " in head:
            self._outcome.refused.append(latency)
        else:
            self._outcome.failures += 1
        self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._outcome.failures += exc is not None

    def close(self) -> None:
        """Go."""
        self._transport.close()


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
    outcome, idle = Outcome(), list[_Visitor]()
    visitors = [
        (await loop.create_connection(lambda: _Visitor(outcome, idle), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    idle.extend(visitors)
    start = time.perf_counter()
    due = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        look(elapsed, outcome)
        while due < elapsed * rate:
            due += 1
            request = next(requests)
            if idle:
                idle.pop().send(request)
            else:
                outcome.unsent += 1
        await asyncio.sleep(TICK)
    while len(idle) < connections and time.perf_counter() - start < seconds + LAST_SECONDS:
        await asyncio.sleep(TICK)
    outcome.failures += connections - len(idle)
    for visitor in visitors:
        visitor.close()
    return outcome
