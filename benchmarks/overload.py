"""What one API process does at three times the load that it can take.

    .venv/bin/python -m benchmarks.overload [--seconds 20] [--times 3]

First a closed loop finds what it can take; then so many times that rate is offered, whatever becomes of
it. Prints a JSON line per kind of request: how many were accepted and refused a second, how long the
accepted ones took, the process' memory over time, and failures: anything but 200, or 503 with
Retry-After. The issue asks for a p99 under 500 ms and flat memory. The server has a core of its own;
this process and the server's database share the others.
"""

import argparse
import asyncio
import json
import os
import time
from collections import deque
from dataclasses import dataclass, field

import httpx
import psutil
import uvloop

from benchmarks.load import Caller, play, post
from benchmarks.predict import APPS, _server, _variables
from benchmarks.stage import trained

TICK = 0.002
PATIENCE = 10.0
CONNECTIONS = 1000
"""Far more than the server lets in: no arrival waits for an answer to another."""


@dataclass(kw_only=True)
class Outcome:
    """What became of the requests: latencies of the accepted ones in seconds, memory in MB."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failures: int = 0
    unsent: int = 0
    memory: list[float] = field(default_factory=list)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of too much load")
    parser.add_argument("--times", type=float, default=3.0, help="the rate that the server can take")
    options = parser.parse_args()
    with trained() as context:
        env = {**os.environ, **_variables(context.settings)}
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cores[1:]) or set(cores))
        for name, rows, connections in (("one row", 1, 32), ("100 rows", 100, 16)):
            with _server(APPS["recorded"], env, cores[0]) as port:
                request = _request(port, rows)
                can_take = play(port, [request], connections=connections, seconds=5).rate
                print(json.dumps({"case": name, **_overload(port, request, can_take, options)}), flush=True)


def _request(port: int, rows: int) -> bytes:
    document = httpx.get(f"http://127.0.0.1:{port}/openapi.json", trust_env=False).json()
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    return post("/predict", json.dumps({name: value * rows for name, value in body.items()}).encode())


def _overload(port: int, request: bytes, can_take: float, options: argparse.Namespace) -> dict[str, object]:
    server = next(child for child in psutil.Process().children() if str(port) in child.cmdline())
    offered = can_take * options.times
    outcome = uvloop.run(_offer(port, request, offered, options.seconds, server))
    accepted, memory = sorted(outcome.accepted), outcome.memory
    return {
        "can_take": round(can_take),
        "offered": round(offered),
        "unsent": outcome.unsent,
        "accepted": round(len(accepted) / options.seconds),
        "refused": round(len(outcome.refused) / options.seconds),
        "failures": outcome.failures,
        "p50_ms": round(1000 * accepted[len(accepted) // 2]),
        "p99_ms": round(1000 * accepted[int(len(accepted) * 0.99)]),
        "max_ms": round(1000 * accepted[-1]),
        "memory_mb": [round(value) for value in memory],
        "memory_growth": round(max(memory[len(memory) // 2 :]) / max(memory[: len(memory) // 2]) - 1, 3),
    }


class _Visitor(Caller):
    """Is idle until it is given a request, and afterwards again."""

    def __init__(self, outcome: Outcome, idle: "deque[_Visitor]") -> None:
        super().__init__()
        self._outcome = outcome
        self._idle = idle
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._idle.append(self)

    def visit(self, request: bytes) -> None:
        self._busy = True
        self.send(request)

    def answered(self, head: bytes) -> None:
        self._busy = False
        latency = time.perf_counter() - self.sent
        if head.startswith(b"http/1.1 200"):
            self._outcome.accepted.append(latency)
        elif head.startswith(b"http/1.1 503") and b"\r\nretry-after: " in head:
            self._outcome.refused.append(latency)
        else:
            self._outcome.failures += 1
        self._idle.append(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._outcome.failures += self._busy  # idle for long, a connection may end
        if self in self._idle:
            self._idle.remove(self)


async def _offer(port: int, request: bytes, rate: float, seconds: float, server: psutil.Process) -> Outcome:
    loop = asyncio.get_running_loop()
    outcome, idle = Outcome(), deque[_Visitor]()
    # each of them is used every second or two, so that the server does not end it as idle
    for _ in range(min(CONNECTIONS, int(rate * 1.5))):
        await loop.create_connection(lambda: _Visitor(outcome, idle), "127.0.0.1", port)
    every = list(idle)
    start = time.perf_counter()
    due = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        if elapsed >= len(outcome.memory):
            outcome.memory.append(server.memory_info().rss / 2**20)
        while due < elapsed * rate:
            due += 1
            if idle:
                idle.popleft().visit(request)
            else:
                outcome.unsent += 1
        await asyncio.sleep(TICK)
    while any(visitor._busy for visitor in every) and time.perf_counter() - start < seconds + PATIENCE:
        await asyncio.sleep(TICK)
    for visitor in every:
        outcome.failures += visitor._busy  # it was never answered
        visitor._busy = False
        visitor._transport.abort()  # type: ignore[attr-defined]
    return outcome


if __name__ == "__main__":
    main()
