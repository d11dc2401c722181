"""Keeps a job's lease alive from a thread of the training process."""

import contextvars
import threading
from types import TracebackType
from typing import Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from shared import jobs
from shared.database import Sessions
from shared.errors import ClaimLost
from shared.settings import Settings

log = structlog.get_logger()


class Lease:
    """Renews a claim every `renew_seconds` on its own connection until the block ends."""

    def __init__(self, sessions: Sessions, claim: jobs.Claim, settings: Settings) -> None:
        """Prepare to renew `claim`."""
        self._sessions = sessions
        self._claim = claim
        self._settings = settings
        self._stop = threading.Event()
        self._lost = threading.Event()
        # A thread begins with nothing of what is bound to the log's lines here: the job.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._renew,), name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Start renewing."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop renewing."""
        self._stop.set()
        self._thread.join(timeout=self._settings.lease_seconds)

    def check(self) -> None:
        """Stop a worker that has lost its job.

        Raises:
            ClaimLost: another worker has raised the fence.
        """
        if self._lost.is_set():
            raise ClaimLost(f"job {self._claim.job_id}: another worker has taken it")

    def _renew(self) -> None:
        while not self._stop.wait(self._settings.renew_seconds):
            try:
                with self._sessions.begin() as session:
                    jobs.renew(session, self._claim, self._settings)
            except ClaimLost:
                if not self._stop.is_set():  # a settled job has no claim either
                    self._lost.set()
                return
            except SQLAlchemyError as exc:  # a dropped connection alone is not a lost claim
                log.warning("lease not renewed, trying again", error=type(exc).__name__)
