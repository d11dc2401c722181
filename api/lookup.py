"""A question to another server, for an answer that must come soon whatever that server does."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()


class Lookup(Generic[T]):
    """Asks in a thread of its own, one at a time: while a server is frozen no more threads wait for it.

    Whoever asks meanwhile waits for the same answer, as long as that may still be in time.
    """

    def __init__(
        self, ask: Callable[[], T], *, name: str, faults: tuple[type[Exception], ...], seconds: float
    ) -> None:
        """Prepare.

        Args:
            ask: gets the answer; it may block for ever.
            name: whom it asks, for the log.
            faults: what it raises when there is none.
            seconds: longest that anybody waits for it.
        """
        self._ask = ask
        self._name = name
        self._faults = faults
        self._seconds = seconds
        self._open: asyncio.Future[T | None] | None = None
        self._until = 0.0
        self._failing = False
        self._fault = ""

    async def answer(self) -> T | None:
        """The answer, or None if there is none in time. Call it on the event loop."""
        if self._open is None or self._open.done():
            self._open = self._start()
        question = self._open
        await asyncio.wait({question}, timeout=max(0.0, self._until - time.monotonic()))
        found = question.result() if question.done() else None
        self._note(failing=found is None)
        return found

    def _start(self) -> "asyncio.Future[T | None]":
        loop = asyncio.get_running_loop()
        question: asyncio.Future[T | None] = loop.create_future()
        self._until = time.monotonic() + self._seconds
        self._fault = "it takes too long"
        # a daemon, in no pool: it keeps neither others from being answered nor this process from its end
        thread = threading.Thread(target=self._run, args=(loop, question), name=self._name, daemon=True)
        thread.start()
        return question

    def _run(self, loop: asyncio.AbstractEventLoop, question: "asyncio.Future[T | None]") -> None:
        found: T | None = None
        try:
            found = self._ask()
        except self._faults as exc:
            self._fault = str(exc).strip()
        finally:  # also after an error that nobody foresaw, or the next question would wait for this one
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, question, found)

    def _note(self, *, failing: bool) -> None:
        """Say once that there is no answer, and once that there is again."""
        if failing and not self._failing:
            log.warning("figures are left out", of=self._name, error=self._fault)
        elif self._failing and not failing:
            log.warning("figures are there again", of=self._name)
        self._failing = failing


def _settle(question: "asyncio.Future[T | None]", found: T | None) -> None:
    if not question.cancelled():
        question.set_result(found)
