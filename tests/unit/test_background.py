"""Background tasks of the API: one that fails takes the process with it, one that is cancelled ends."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from api.main import _cancel, _start


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The SIGTERMs that this process got."""
    found: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


async def forever() -> None:
    await asyncio.sleep(60)


async def fails() -> None:
    raise RuntimeError("nobody foresaw it")


def test_a_task_that_fails_stops_the_process(heard: list[int]) -> None:
    async def scenario() -> None:
        await asyncio.wait({_start(fails())})
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert heard == [signal.SIGTERM]


def test_a_task_that_is_cancelled_or_ends_stops_nothing(heard: list[int]) -> None:
    async def scenario() -> None:
        await _cancel(_start(forever()))
        await asyncio.wait({_start(asyncio.sleep(0))})
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert heard == []


def test_a_task_that_loses_a_cancellation_ends_all_the_same() -> None:
    """As Redis' client and `wait_for` may lose one when their call is just done."""

    async def deaf() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def scenario() -> None:
        task = asyncio.create_task(deaf())
        await asyncio.sleep(0)
        await asyncio.wait_for(_cancel(task), 20)
        assert task.cancelled()

    asyncio.run(scenario())
