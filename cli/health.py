"""`python -m cli.health ROLE`: is this container's process well? Exit code 0, or 1 and a line that says why.

For health checks, which run it every few seconds: nothing is imported that the role doesn't need.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

API_PORT = 8000
FLOWER_PORT = 5555
SECONDS = 4.0
"""Longest that a process may take to answer."""

BEAT_SILENT_SECONDS = 60.0
"""Beat sends something every few seconds, unless it is told otherwise; longer silence means that it can't."""


def main(arguments: list[str]) -> int:
    """Check the role that the one argument names."""
    role = arguments[0] if len(arguments) == 1 else ""
    if role not in CHECKS:
        return _say(f"name one of: {', '.join(CHECKS)}")
    fault = CHECKS[role]()
    return _say(f"{role}: {fault}") if fault else 0


def _answers(port: int, path: str) -> str | None:
    """What is wrong with a server of this container, or None."""
    url = f"http://127.0.0.1:{port}{path}"
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=SECONDS):
            return None
    except (OSError, HTTPException) as exc:
        return f"{url} does not answer: {exc}"


def _hears(name: str) -> str | None:
    """What is wrong with a Celery worker of this container, or None: a round trip over the broker."""
    from celery import Celery
    from kombu.exceptions import OperationalError

    # not the workers' own app, which takes a second of a core to import
    app = Celery(broker=os.environ["RATCHET_REDIS_URL"])
    node = f"{name}@{socket.gethostname()}"
    try:
        found = app.control.ping(destination=[node], timeout=SECONDS, limit=1)
    except (OSError, OperationalError) as exc:
        return f"the broker does not answer: {type(exc).__name__}"
    return None if found else f"{node} does not hear the broker"


def _ticks() -> str | None:
    """What is wrong with beat, or None: it marks the time at which it last sent something."""
    from shared.tick import TICK

    try:
        silent = time.time() - TICK.stat().st_mtime
    except FileNotFoundError:
        return "nothing was sent yet"
    told = (os.environ.get(name) for name in ("RATCHET_SWEEP_SECONDS", "RATCHET_RECONCILE_SECONDS"))
    longest = max(BEAT_SILENT_SECONDS, 3 * min(float(seconds or 0) for seconds in told))
    return f"nothing was sent for {silent:.0f} s" if silent > longest else None


def _say(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 1


CHECKS: dict[str, Callable[[], str | None]] = {
    "api": lambda: _answers(API_PORT, "/health"),
    "retrain": lambda: _hears("retrain"),
    "upkeep": lambda: _hears("upkeep"),
    "beat": _ticks,
    "flower": lambda: _answers(FLOWER_PORT, "/healthcheck"),
}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
