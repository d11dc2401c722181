"""A question to a server that may never answer: nobody waits long, and one thread at most."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from api.lookup import Lookup

SOON = 0.05


class Server:
    """Answers when it is let go; `fault` is raised instead."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.asked = 0
        self.fault: Exception | None = None

    def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        self.free.wait(20)
        if self.fault is not None:
            raise self.fault
        return number


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that is frozen at first, and no longer once the test is over."""
    found = Server()
    yield found
    found.free.set()


def lookup(server: Callable[[], int], seconds: float = SOON) -> Lookup[int]:
    """A question to it."""
    return Lookup(server, name="it", faults=(OSError,), seconds=seconds)


def end_threads() -> None:
    """Wait for all that ask."""
    for thread in threading.enumerate():
        if thread.name == "it":
            thread.join(10)


def test_a_server_that_does_not_answer_is_asked_by_one_thread(server: Server) -> None:
    async def scenario() -> None:
        found = lookup(server)
        answers = await asyncio.gather(*(found.answer() for _ in range(5)))
        answers += [await found.answer() for _ in range(5)]
        assert answers == [None] * 10
        assert server.asked == 1
        assert [thread.name for thread in threading.enumerate()].count("it") == 1
        server.free.set()
        while await found.answer() != 2:  # the first answer came too late for everybody
            await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_who_asks_meanwhile_shares_the_answer(server: Server) -> None:
    async def scenario() -> None:
        found = lookup(server, seconds=20)
        asking = [asyncio.ensure_future(found.answer()) for _ in range(5)]
        await asyncio.sleep(0)
        server.free.set()
        assert await asyncio.gather(*asking) == [1] * 5
        assert await found.answer() == 2  # asked anew: figures are never old

    asyncio.run(scenario())


def test_a_fault_is_no_answer_and_the_next_question_is_asked(server: Server) -> None:
    async def scenario() -> None:
        found = lookup(server, seconds=20)
        server.free.set()
        server.fault = ConnectionError("gone")
        assert await found.answer() is None
        server.fault = None
        assert await found.answer() == 2

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_nobody_foresaw_blocks_no_later_question(server: Server) -> None:
    async def scenario() -> None:
        found = lookup(server, seconds=20)
        server.free.set()
        server.fault = KeyError("nobody foresaw it")
        assert await found.answer() is None
        server.fault = None
        assert await found.answer() == 2

    asyncio.run(scenario())
    end_threads()  # its error is told in this test


def test_an_answer_after_the_end_of_the_loop_harms_nobody(server: Server) -> None:
    assert asyncio.run(lookup(server).answer()) is None
    server.free.set()
    end_threads()
    assert "it" not in [thread.name for thread in threading.enumerate()]
