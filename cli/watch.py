"""A process that is started again when it dies, until it dies too often."""

import time
from collections.abc import Callable

from cli.processes import Process, StackError

RESTARTS = 5
WINDOW = 60.0
"""Seconds: more than `RESTARTS` deaths within it end the stack."""
BACKOFF = 0.5
"""Seconds before the first restart; doubled for each further death within the window."""

Report = Callable[[str], None]


class Watched:
    """Keeps one process of the stack alive.

    Args:
        name: as it is reported.
        launch: starts the process; raises StackError if it can't.
        report: is told what happened, in words.
        backoff: seconds before the first restart.
    """

    def __init__(
        self, name: str, launch: Callable[[], Process], report: Report, *, backoff: float = BACKOFF
    ) -> None:
        self.name = name
        self._launch = launch
        self._report = report
        self._backoff = backoff
        self._deaths: list[float] = []
        self._due: float | None = None
        self.process: Process | None = None

    def start(self) -> Process:
        """Start the process for the first time."""
        self.process = self._launch()
        return self.process

    @property
    def is_alive(self) -> bool:
        """Whether the process runs now."""
        return self.process is not None and self.process.is_alive

    def check(self) -> bool:
        """Start the process again if it died and its pause is over.

        Returns:
            Whether there is a new process.

        Raises:
            StackError: it died more than `RESTARTS` times within `WINDOW` seconds.
        """
        if self.process is None or self.process.is_alive:
            return False
        if self._due is None:
            self._died(
                f"{self.process.ending()}; the end of {self.process.command.log}:\n{self.process.tail()}"
            )
            return False
        if time.monotonic() < self._due:
            return False
        self._due = None
        self.process.stop()  # what it forked may have outlived it
        try:
            self.process = self._launch()
        except StackError as exc:
            self._died(exc.detail)
            return False
        self._report(f"{self.name} runs again")
        return True

    def stop(self) -> None:
        """End the process and what it forked."""
        if self.process is not None:
            self.process.stop()

    def _died(self, how: str) -> None:
        now = time.monotonic()
        self._deaths = [death for death in self._deaths if now - death < WINDOW] + [now]
        deaths = len(self._deaths)
        if deaths > RESTARTS:
            raise StackError(f"{self.name} died {deaths} times in {WINDOW:.0f} s, the last time: {how}")
        pause = self._backoff * 2 ** (deaths - 1)
        self._due = now + pause
        self._report(f"{self.name} {how}\nrestart {deaths} of {RESTARTS} in {pause:g} s")
