"""The real functions on a real Postgres, as the API, the workers and an operator call them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx
import psycopg
from sqlalchemy import text
from sqlalchemy.orm import Session

from api.statements import write_batch
from api.writes import Recorded, Row, Write
from shared import jobs, labels, registry
from shared.artifacts import Stored
from shared.database import database_url
from shared.errors import Conflict, RatchetError
from shared.jobs import Claim
from shared.signature import Signature, dump_features
from tests.integration.machine import CLASSES
from tests.integration.promises import Seen, look
from worker import publishing
from worker.champion import Champion
from worker.evaluation import Verdict
from worker.export import Exported
from worker.lease import Lease
from worker.parts import StoredPart
from worker.preprocessing import Preprocessor
from worker.publishing import Candidate, Outcome
from worker.run import Context, Run

T = TypeVar("T")
GivenRow = tuple[str | None, int, str | None]
"""A caller's id, what tells the features apart, a label."""

_EMPTY = text("""
TRUNCATE predictions, request_ids, labels, deployments, model_versions, dataset_parts, retrain_jobs,
signatures
RESTART IDENTITY
""")
_FIRST = (
    "INSERT INTO signatures (target, features) VALUES ('t', '[]')",
    """INSERT INTO retrain_jobs (trigger, signature_id, state, fence, started_at, finished_at)
    VALUES ('bootstrap', 1, 'succeeded', 1, now(), now())""",
    "INSERT INTO dataset_parts (job_id, key, rows, size, sha256) VALUES (1, 'parts/first.parquet', 1, 1, '')",
    """INSERT INTO model_versions (version, job_id, signature_id, artifact_key, classes, categories,
    scaled_features, metrics, report)
    VALUES (1, 1, 1, 'versions/1-1', '["x", "y", "z"]', '{}', '[]', '{}', '{}')""",
    "INSERT INTO deployments (champion, actor, reason) VALUES (1, 'job 1', 'the first')",
)
# A lease that runs out and a pause that ends are Postgres' clock going on: everything moves back.
_PASS = (
    "UPDATE labels SET created_at = created_at - make_interval(mins => :minutes)",
    """UPDATE retrain_jobs SET finished_at = finished_at - make_interval(mins => :minutes),
    lease_until = lease_until - make_interval(mins => :minutes)""",
)
_CLAIMED = text("SELECT id FROM labels WHERE job_id = :job AND superseded_at IS NULL ORDER BY id")


class Aborted(Exception):
    """The process died before the commit."""


@dataclass(kw_only=True)
class Worker:
    """What a worker remembers, however long it was frozen: its claim, its part, whom its gate saw live."""

    claim: Claim
    part: tuple[int, ...] | None = None
    champion: tuple[int, int] = (0, 0)


class World:
    """A database in which version 1 is live, and the calls on it."""

    def __init__(self, context: Context, runner: asyncio.Runner) -> None:
        self.context = context
        self.sessions = context.sessions
        self.happened: Counter[str] = Counter()
        self._runner = runner
        self._connection = runner.run(
            psycopg.AsyncConnection.connect(database_url(context.settings), autocommit=True)
        )
        self._rows = 0
        # One connection that is never in a transaction: a look costs two round trips.
        engine = self.sessions.kw["bind"].execution_options(isolation_level="AUTOCOMMIT")
        self._looking = self.sessions(bind=engine.connect())

    def close(self) -> None:
        """Close the connections of its own."""
        self._runner.run(self._connection.close())
        self._looking.connection().close()
        self._looking.close()

    def look(self) -> Seen:
        """Every table as it is now."""
        return look(self._looking)

    def begin(self) -> None:
        """Begin anew: version 1 and nothing else."""
        self._rows = 0
        with self.sessions.begin() as session:
            session.execute(_EMPTY)
            for statement in _FIRST:
                session.execute(text(statement))

    def do(self, work: Callable[[Session], T]) -> T:
        """One transaction."""
        with self.sessions.begin() as session:
            return work(session)

    def abort(self, *works: Callable[[Session], object]) -> None:
        """A transaction that ends before its commit."""
        with self.sessions() as session, suppress(RatchetError):
            for work in works:
                work(session)
            session.flush()

    def minutes_pass(self, minutes: int) -> None:
        """Let time go by."""
        with self.sessions.begin() as session:
            for statement in _PASS:
                session.execute(text(statement), {"minutes": minutes})

    def writes(self, batch: Sequence[Sequence[GivenRow]], live: tuple[int, int]) -> list[Write]:
        """Requests as the recorder takes them: no caller's id twice in a batch, and an id for each row."""
        return [
            Write(
                deployment_id=live[0],
                version=live[1],
                signature_id=1,
                source="raw",
                rows=[self._row(*given) for given in request],
            )
            for request in _apart(batch)
        ]

    def _row(self, caller_id: str | None, features: int, label: str | None) -> Row:
        self._rows += 1
        return Row(
            id=f"00000000-0000-7000-8000-{self._rows:012}",
            predicted=CLASSES[features],
            probabilities=[0.5, 0.25, 0.25],
            features=dump_features({"size": features}),
            label=label,
            caller_id=caller_id,
        )

    def write(self, writes: Sequence[Write]) -> list[Recorded | None]:
        """Commit a batch; None for a request that was refused with 409."""
        found = self._runner.run(write_batch(self._connection, writes))
        assert all(isinstance(answer, Recorded | Conflict) for answer in found)
        return [answer if isinstance(answer, Recorded) else None for answer in found]

    def abort_write(self, writes: Sequence[Write]) -> None:
        """Write a batch and lose it before the commit."""

        async def write() -> None:
            async with self._connection.transaction(force_rollback=True):
                await write_batch(self._connection, writes)

        self._runner.run(write())

    def claim_labels(self, worker: Worker) -> int:
        """Steps 2 and 3: the waiting labels are the job's, and a part is made of them."""

        def claim(session: Session) -> int:
            jobs.hold(session, worker.claim)
            claimed = labels.claim_waiting(session, worker.claim.job_id)
            worker.part = tuple(session.scalars(_CLAIMED, {"job": worker.claim.job_id}))
            return claimed

        return self.do(claim)

    def publish(self, worker: Worker, *, passes: bool) -> str:
        """Step 11, after the artifacts are stored."""
        return publishing._settle(*self._publication(worker, passes=passes))

    def abort_publish(self, worker: Worker) -> None:
        """Step 11 of a worker that dies before the commit."""
        publication = self._publication(worker, passes=True)
        self.abort(
            lambda session: jobs.hold(session, worker.claim),
            lambda session: publishing._write(session, *publication),
        )

    def _publication(self, worker: Worker, *, passes: bool) -> tuple[Run, str, Candidate, Outcome]:
        claim, part = worker.claim, worker.part or ()
        name = f"{claim.job_id}-{claim.fence}"
        stored = Stored(size=1, sha256="")
        candidate = Candidate(
            exported=Exported(model_onnx=b"", trees_onnx=b"", model_cbm=b""),
            preprocessor=Preprocessor(graph=onnx.ModelProto(), scaled_features=(), categories={}, blocks=()),
            classes=tuple(CLASSES),
            part=StoredPart(key=f"parts/{name}.parquet", rows=len(part), stored=stored) if part else None,
            manifest={},
            report={},
        )
        deployment, version = worker.champion
        outcome = Outcome(
            champion=Champion(deployment_id=deployment, version=version, classes=(), artifact_key=""),
            challenger_metrics={},
            champion_metrics={},
            verdict=Verdict(publish=passes, reason="as drawn", challenger_f1=1.0, champion_f1=0.5),
        )
        context = self.context
        run = Run(
            context=context,
            claim=claim,
            lease=Lease(context.sessions, claim, context.settings),
            signature=Signature(id=1, target="t", features=()),
        )
        return run, f"versions/{name}", candidate, outcome

    def deploy(self, version: int, previous: int | None) -> int:
        """Make a version live; answers the deployment's id."""
        values: dict[str, Any] = {"version": version, "previous": previous, "actor": "ops", "reason": "back"}
        return self.do(lambda session: registry.deploy(session, **values)).id


def _apart(batch: Sequence[Sequence[GivenRow]]) -> list[list[GivenRow]]:
    seen: set[str | None] = set()
    kept = []
    for request in batch:
        rows = []
        for row in request:
            if row[0] is None or row[0] not in seen:
                seen.add(row[0])
                rows.append(row)
        if rows:
            kept.append(rows)
    return kept
