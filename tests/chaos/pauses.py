"""Where a worker is made to stand still, so that a fault hits it at a known step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.pause import REACHED, VARIABLE

REACH_SECONDS = 90.0
POINTS = [*(f"step-{step}" for step in range(1, 13)), "step-8-progress", "publish"]
"""Every pause point: each step's beginning, the middle of the fit, the open transaction that publishes."""


class Pauses:
    """The folder that the workers of a stack look into at each point."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.environment = {VARIABLE: str(folder)}

    @contextmanager
    def at(self, point: str) -> Iterator[int]:
        """Wait until a worker comes to the point; yields its pid, and lets it go on when the block ends."""
        assert point in POINTS
        asked, reached = self._folder / point, self._folder / (point + REACHED)
        asked.touch()
        try:
            deadline = time.monotonic() + REACH_SECONDS
            while not reached.exists():
                assert time.monotonic() < deadline, f"no worker came to {point} in {REACH_SECONDS:.0f} s"
                time.sleep(0.01)
            yield int(reached.read_text(encoding="ascii"))
        finally:
            self.let_go(point)

    def let_go(self, point: str) -> None:
        """Whoever stands at the point, or comes to it, goes on."""
        for name in (point, point + REACHED):
            (self._folder / name).unlink(missing_ok=True)
