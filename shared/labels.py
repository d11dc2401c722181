"""Labels: how they are put, counted and claimed.

`put_label` is one function inside Postgres (migration 0002), because the recorder (async) and the
routes (sync) both call it and must agree to the letter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlalchemy.orm import Session

_PUT = text("""
SELECT given.n, p.outcome, p.new_labels
FROM (SELECT * FROM json_to_recordset(:labels) AS r(n int, id uuid, value text) ORDER BY id, n) AS given,
     LATERAL put_label(given.id, given.value, true) AS p
""")
# Locked in the order in which `put_labels` corrects them: in any other, the two can deadlock.
_CLAIM = text("""
UPDATE labels SET job_id = :job WHERE id IN (
    SELECT id FROM labels WHERE job_id IS NULL AND superseded_at IS NULL ORDER BY prediction_id FOR UPDATE)
AND NOT EXISTS (SELECT 1 FROM labels WHERE job_id = :job)
""")
_RELEASE = text("""
UPDATE labels SET job_id = NULL WHERE id IN (
    SELECT id FROM labels WHERE job_id = :job AND superseded_at IS NULL ORDER BY prediction_id FOR UPDATE)
""")
_COUNTS = text("""
SELECT count(*) AS total,
       count(*) FILTER (WHERE superseded_at IS NOT NULL) AS superseded,
       count(*) FILTER (WHERE superseded_at IS NULL AND job_id IS NULL) AS waiting,
       count(*) FILTER (WHERE superseded_at IS NULL AND j.state IN ('queued', 'running')) AS claimed,
       count(*) FILTER (WHERE superseded_at IS NULL AND j.state IN ('succeeded', 'rejected')) AS trained
FROM labels l LEFT JOIN retrain_jobs j ON j.id = l.job_id
""")


@dataclass(frozen=True, kw_only=True)
class Put:
    """What became of one label: accepted, corrected, repeated or unknown; and new labels to count."""

    outcome: str
    new_labels: int


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """All labels by state; superseded wins over every other."""

    total: int
    trained: int
    waiting: int
    claimed: int
    superseded: int


def put_labels(session: Session, labels: Sequence[tuple[UUID, str]]) -> list[Put]:
    """Put labels in one statement, locking predictions in the order of their ids; answers in order given."""
    given = [{"n": n, "id": str(key), "value": value} for n, (key, value) in enumerate(labels)]
    rows = session.execute(_PUT, {"labels": orjson.dumps(given).decode()})
    found = {row.n: Put(outcome=row.outcome, new_labels=row.new_labels) for row in rows}
    return [found[n] for n in range(len(labels))]


def find_predictions(session: Session, ids: Sequence[str]) -> dict[str, UUID]:
    """The predictions that callers' ids name; unknown ids are left out."""
    rows = session.execute(
        text("SELECT id, prediction_id FROM request_ids WHERE id = ANY(:ids)"), {"ids": list(ids)}
    )
    return {row.id: row.prediction_id for row in rows}


def waiting(session: Session) -> int:
    """Labels that no job has claimed."""
    return int(session.execute(text("SELECT waiting_labels()")).scalar_one())


def label_counts(session: Session) -> LabelCounts:
    """Every label, by state."""
    return LabelCounts(**session.execute(_COUNTS).one()._mapping)


def claim_waiting(session: Session, job_id: int) -> int:
    """Give every waiting label to a job that has none yet; answers how many are the job's now.

    A worker that takes a job over gets the labels of the first: what came since waits for the next job.
    """
    session.execute(_CLAIM, {"job": job_id})
    held = text("SELECT count(*) FROM labels WHERE job_id = :job AND superseded_at IS NULL")
    return int(session.execute(held, {"job": job_id}).scalar_one())


def release(session: Session, job_id: int) -> None:
    """Let a job's labels wait again, except those it lost to a correction."""
    session.execute(_RELEASE, {"job": job_id})
