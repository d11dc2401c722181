"""What one API process does at three times the load that it can take.

    .venv/bin/python -m benchmarks.overload [--seconds 20] [--times 3]

First a closed loop finds what it can take; then so many times that rate is offered, whatever becomes of
it. Prints a JSON line per kind of request: how many were accepted and refused a second, how long the
accepted ones took, the process' memory over time, and failures: anything but 200, or 503 with
Retry-After. The goal is a p99 under 500 ms and flat memory. The server has a core of its own;
this process and the server's database share the others.
"""

import argparse
import itertools
import json
import os

import httpx
import psutil
import uvloop

from benchmarks.load import play, post
from benchmarks.offered import Outcome, offer
from benchmarks.predict import APPS, leave_a_core, server, variables
from benchmarks.stage import trained

CONNECTIONS = 1000
"""Far more than the server lets in: no arrival waits for an answer to another."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of too much load")
    parser.add_argument("--times", type=float, default=3.0, help="the rate that the server can take")
    options = parser.parse_args()
    with trained() as context:
        env = {**os.environ, **variables(context.settings)}
        core = leave_a_core()
        for name, rows, connections in (("one row", 1, 32), ("100 rows", 100, 16)):
            with server(APPS["recorded"], env, core) as port:
                request = _request(port, rows)
                can_take = play(port, [request], connections=connections, seconds=5).rate
                print(json.dumps({"case": name, **_overload(port, request, can_take, options)}), flush=True)


def _request(port: int, rows: int) -> bytes:
    document = httpx.get(f"http://127.0.0.1:{port}/openapi.json", trust_env=False).json()
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    return post("/predict", json.dumps({name: value * rows for name, value in body.items()}).encode())


def _overload(port: int, request: bytes, can_take: float, options: argparse.Namespace) -> dict[str, object]:
    process = next(child for child in psutil.Process().children() if str(port) in child.cmdline())
    offered = can_take * options.times
    memory: list[float] = []

    def look(elapsed: float, _: Outcome) -> None:
        if elapsed >= len(memory):
            memory.append(process.memory_info().rss / 2**20)

    # each connection is used every second or two, so that the server does not end it as idle
    connections = min(CONNECTIONS, int(offered * 1.5))
    load = offer(
        port, itertools.repeat(request), offered, options.seconds, connections=connections, look=look
    )
    outcome = uvloop.run(load)
    accepted = sorted(outcome.accepted)
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


if __name__ == "__main__":
    main()
