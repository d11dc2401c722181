"""The lock of a home: one stack at a time."""

import fcntl
import os
import time
from pathlib import Path

from cli.processes import StackError
from cli.state import LOCK, make_private, recorded_state

ATTEMPTS = 10
"""A command that looks whether the stack runs holds the lock for an instant: try again, 50 ms apart."""


class HomeLock:
    """An flock on `home/lock`, which the kernel frees however its holder ends; children don't inherit it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._path = home / LOCK
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock.

        Raises:
            StackError: a running stack holds it, or `home` belongs to another user.
        """
        try:
            make_private(self._home)
            for _ in range(ATTEMPTS):
                if self._try():
                    return
                time.sleep(0.05)
        except PermissionError as exc:
            raise StackError(
                f"{self._home} belongs to another user: run as that user, or set RATCHET_HOME"
            ) from exc
        state = recorded_state(self._home)
        where = f", its API at {state.api_url}" if state else ""
        raise StackError(f"a stack already runs in {self._home}{where}")

    def release(self) -> None:
        """Give the lock back and remove its file. Does nothing if it isn't held."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _try(self) -> bool:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between our open and our lock.
            if self._path.stat().st_ino == os.fstat(file).st_ino:
                self._file = file
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(file)
        return False
