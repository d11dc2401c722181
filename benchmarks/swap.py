"""How long a swap to a new version holds up the event loop that answers requests.

    .venv/bin/python -m benchmarks.swap [--swaps 40]

A task that wants to run every millisecond measures how late it is, at rest and while the served version
changes again and again. Prints one JSON line, milliseconds.
"""

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from typing import Any

import structlog
import uvloop

from api.serving import Serving
from benchmarks.stage import trained
from shared import registry
from worker.run import Context

TICK = 0.001


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--swaps", type=int, default=40)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with trained(versions=2) as context:
        print(json.dumps(uvloop.run(_measure(context, options.swaps))), flush=True)


async def _measure(context: Context, swaps: int) -> dict[str, object]:
    serving = Serving(sessions=context.sessions, store=context.store, settings=context.settings)
    await serving.refresh()
    at_rest = await _lateness(asyncio.sleep(2))
    served: list[int] = []

    async def swap() -> None:
        for number in range(swaps):
            await asyncio.to_thread(_deploy, context, 1 + number % 2)
            await serving.refresh()
            served.append(serving.plan.model.version)

    during = await _lateness(swap())
    assert served == [1 + number % 2 for number in range(swaps)]
    return {"swaps": swaps, "late_ms_at_rest": at_rest, "late_ms_during_swaps": during}


async def _lateness(work: Coroutine[Any, Any, None]) -> dict[str, float]:
    late: list[float] = []
    task = asyncio.create_task(work)
    while not task.done():
        before = time.perf_counter()
        await asyncio.sleep(TICK)
        late.append(1000 * (time.perf_counter() - before - TICK))
    await task
    late.sort()
    return {
        "p50": round(late[len(late) // 2], 2),
        "p99": round(late[int(len(late) * 0.99)], 2),
        "max": round(late[-1], 2),
    }


def _deploy(context: Context, version: int) -> None:
    with context.sessions.begin() as session:
        previous = registry.newest_deployment(session)
        registry.deploy(session, version=version, previous=previous, actor="benchmark", reason="swap")


if __name__ == "__main__":
    main()
