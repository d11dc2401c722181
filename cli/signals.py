"""Signals that ask a command to stop, held back while it must not be disturbed."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """While installed, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, but never inside `held()`.

    One that was ignored before (`nohup`) stays ignored. Outside the main thread nothing is installed.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._depth = 0
        self._asked = False

    def install(self) -> None:
        """Take the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in ASKING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)

    def restore(self) -> None:
        """Give them back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal that arrives in the block is raised at its end."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._asked and self._depth == 0:
            self._asked = False
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on nothing is raised any more: the end has begun."""
        self._depth += 1

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._depth:
            self._asked = True
        else:
            raise KeyboardInterrupt
