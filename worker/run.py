"""One run of a job: what every step needs, and where it stands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from celery import Celery
from redis import Redis

from shared import jobs
from shared.artifacts import ArtifactStore
from shared.database import Sessions
from shared.settings import Settings
from shared.signature import Signature
from worker.lease import Lease

log = structlog.get_logger()


def _nobody(_: str) -> None:
    """Hears of progress where nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker process has: made after the fork, the same for every job."""

    settings: Settings
    sessions: Sessions
    store: ArtifactStore
    redis: Redis
    celery: Celery
    notify: Callable[[str], None] = _nobody


@dataclass(kw_only=True)
class Run:
    """A claimed job on its way through the workflow."""

    context: Context
    claim: jobs.Claim
    lease: Lease
    signature: Signature
    rows: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def at(self, step: int, note: str = "", *, part: float = 0.0) -> None:
        """Say that a step begins (or how far it is), in Postgres, the log and Flower.

        Raises:
            ClaimLost: the job is not ours any more.
        """
        self.lease.check()
        name = jobs.STEPS[step - 1]
        progress = (step - 1 + part) / len(jobs.STEPS)
        with self.context.sessions.begin() as session:
            jobs.report(session, self.claim, step=step, progress=progress, note=note or name)
        log.info("step", step=step, name=name, note=note)
        self.context.notify(f"step {step}/{len(jobs.STEPS)} {name} {note}".strip())
