"""One run of a job: what every step needs, and where it stands."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import structlog
from celery import Celery
from redis import Redis
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared import jobs
from shared.artifacts import ArtifactStore
from shared.database import Sessions
from shared.settings import Settings
from shared.signature import Signature
from worker.lease import Lease
from worker.patience import patiently
from worker.pause import pause

log = structlog.get_logger()
T = TypeVar("T")


def _nobody(_: str) -> None:
    """Hears of progress where nobody watches."""


class Stop:
    """Somebody asks the worker to stop: KeyboardInterrupt at once, or where the work can bear it."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._asked = False
        self._held = False

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Handle the signal that asks."""
        self._asked = True
        if not self._held:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Stop here if somebody has asked.

        Raises:
            KeyboardInterrupt: somebody has.
        """
        if self._asked:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """In the block only `check` stops, and its end.

        For CatBoost's fit: an exception that a signal raises in the code around its callbacks is lost,
        ends the process without a word, or comes out as an error of CatBoost's.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker process has: made after the fork, the same for every job."""

    settings: Settings
    sessions: Sessions
    store: ArtifactStore
    redis: Redis
    celery: Celery
    notify: Callable[[str], None] = _nobody
    stop: Stop = field(default_factory=Stop)


@dataclass(kw_only=True)
class Run:
    """A claimed job on its way through the workflow."""

    context: Context
    claim: jobs.Claim
    lease: Lease
    signature: Signature
    rows: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def at(self, step: int, note: str = "") -> None:
        """Say that a step begins, in Postgres, the log and Flower.

        Raises:
            ClaimLost: the job is not ours any more.
        """
        self.transaction(lambda session: self._report(session, step, note))
        self._tell(step, note, part=0.0)
        pause(f"step-{step}")

    def progress(self, step: int, note: str, part: float) -> None:
        """Say how far a step is, 0 to 1. A short outage of Postgres is no reason to lose the work.

        Raises:
            ClaimLost: as for `at`.
        """
        self.check()
        try:
            with self.context.sessions.begin() as session:
                self._report(session, step, note, part=part)
        except SQLAlchemyError as exc:
            log.warning("progress not reported", error=type(exc).__name__)
        self._tell(step, note, part=part)
        pause(f"step-{step}-progress")

    def transaction(self, work: Callable[[Session], T]) -> T:
        """Do `work` in a transaction; again, while only the connection is lost.

        Raises:
            ClaimLost: the job is not ours any more.
            DBAPIError: Postgres refused, or did not come back in time.
        """
        return patiently(self.context.sessions, work, check=self.check)

    def check(self) -> None:
        """Stop here if the job is not ours any more, or somebody has asked.

        Raises:
            ClaimLost: another worker has taken the job.
            KeyboardInterrupt: somebody has asked.
        """
        self.context.stop.check()
        self.lease.check()

    def _report(self, session: Session, step: int, note: str, *, part: float = 0.0) -> None:
        name, progress = jobs.STEPS[step - 1], _progress(step, part)
        jobs.report(session, self.claim, step=step, progress=progress, note=note or name)

    def _tell(self, step: int, note: str, *, part: float) -> None:
        name, steps, done = jobs.STEPS[step - 1], len(jobs.STEPS), _progress(step, part)
        log.info("step", step=step, name=name, note=note, progress=round(done, 3))
        self.context.notify(f"{done:.0%}: step {step}/{steps} {name}" + (f", {note}" if note else ""))


def _progress(step: int, part: float) -> float:
    """How much of the whole is done, 0 to 1, when that part of a step is."""
    return (step - 1 + part) / len(jobs.STEPS)
