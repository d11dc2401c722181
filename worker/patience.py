"""Going on after a lost connection, which is no lost claim."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from shared.database import Sessions, is_cut_off

PATIENCE_SECONDS = 120.0
"""How long Postgres is tried again before the work counts as failed."""
RETRY_SECONDS = 0.5

log = structlog.get_logger()
T = TypeVar("T")


def patiently(
    sessions: Sessions, work: Callable[[Session], T], *, check: Callable[[], None] = lambda: None
) -> T:
    """Do `work` in a transaction; again, while only the connection or the server is gone.

    After a commit in doubt `work` runs a second time: it begins by asking for the claim, or it changes
    nothing the second time. `check` is called before each attempt and may raise.

    Raises:
        DBAPIError: Postgres refused, or did not come back in time.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        check()
        try:
            with sessions.begin() as session:
                return work(session)
        except DBAPIError as exc:
            if not is_cut_off(exc) or time.monotonic() > deadline:
                raise
            log.warning("cut off from Postgres, trying again", error=type(exc.orig).__name__)
            time.sleep(RETRY_SECONDS)
