"""What durable recording costs: `/predict` against the same route without recording, in one run.

    .venv/bin/python -m benchmarks.predict [--seconds 5] [--rounds 3]

One server core (each server is pinned to core 0, one at a time under load); this process and the
servers' databases have the others. Postgres commits with fsync. Prints JSON lines and the ratio of the
medians; the goal is at least 0.6 at 32 connections and one labelled row a request.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks.load import Result, play, post
from benchmarks.stage import trained
from shared.settings import Settings, variable

APPS = {"unrecorded": "benchmarks.unrecorded:create_app", "recorded": "api.main:create_app"}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load per measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server, in turn")
    options = parser.parse_args()
    with trained() as context:
        env = {**os.environ, **variables(context.settings)}
        core = leave_a_core()
        with (
            server(APPS["unrecorded"], env, core) as plain,
            server(APPS["recorded"], env, core) as full,
        ):
            _measure({"unrecorded": plain, "recorded": full}, options.seconds, options.rounds)


def leave_a_core() -> int:
    """Keep this process, and whatever it starts from now on, off one core; answers which."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    return cores[0]


def _measure(ports: dict[str, int], seconds: float, rounds: int) -> None:
    example = httpx.get(f"http://127.0.0.1:{ports['recorded']}/openapi.json", trust_env=False).json()
    body = example["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    batch = {name: value * 100 for name, value in body.items()}
    for name, request, connections, rows in (
        ("one row, 32 connections", body, 32, 1),
        ("one row, 8 connections", body, 8, 1),
        ("100 rows, 8 connections", batch, 8, 100),
    ):
        wire = [post("/predict", json.dumps(request).encode())]
        found: dict[str, list[Result]] = {server: [] for server in ports}
        for _ in range(rounds):
            for server, port in ports.items():
                found[server].append(play(port, wire, connections=connections, seconds=seconds))
        rates = {s: statistics.median(result.rate for result in results) for s, results in found.items()}
        p99 = {s: statistics.median(result.p99 for result in results) for s, results in found.items()}
        print(
            json.dumps(
                {
                    "case": name,
                    "rows_per_second": {s: round(rate * rows) for s, rate in rates.items()},
                    "p99_ms": {s: round(value, 2) for s, value in p99.items()},
                    "failures": sum(r.failures for results in found.values() for r in results),
                    "ratio": round(rates["recorded"] / rates["unrecorded"], 2),
                }
            ),
            flush=True,
        )


def variables(settings: Settings) -> dict[str, str]:
    """What makes a server use the same Postgres, Redis and folder."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    return {
        variable("database_url"): settings.database_url.get_secret_value(),
        variable("redis_url"): settings.redis_url.get_secret_value(),
        variable("home"): str(settings.home),
        variable("threshold"): str(settings.threshold),
    }


@contextmanager
def server(app: str, env: dict[str, str], core: int) -> Iterator[int]:
    """Run an app on a core of its own until the block ends; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", app, "--port", str(port), "--loop", "uvloop"]
    process = subprocess.Popen(
        [*command, "--http", "api.protocol:Protocol", "--no-access-log", "--log-level", "error"],
        env=env,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509 - one thread forks here
    )
    try:
        while True:
            assert process.poll() is None, f"{app} did not start"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
