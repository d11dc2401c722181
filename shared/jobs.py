"""Jobs: requested, claimed under a lease and a fence, finished. All times are Postgres' clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from shared import labels
from shared.errors import ClaimLost, Conflict, NoModel, NotFound
from shared.settings import Settings
from shared.tables import ACTIVE, Job, SignatureRow

MAX_FAILURES = 3
STEPS = (
    "claim the job",
    "claim the labels",
    "write the dataset part",
    "load the parts",
    "split",
    "clean",
    "preprocess",
    "balance and train",
    "export and prove",
    "evaluate",
    "publish",
    "announce",
)

# retrain_due() is a function inside Postgres (migration 0002): one rule for API, worker and sweeper.
_REQUEST_DUE = text("""
INSERT INTO retrain_jobs (trigger, signature_id)
SELECT 'threshold', (SELECT max(id) FROM signatures)
WHERE retrain_due(:threshold, make_interval(secs => :pause)) ON CONFLICT DO NOTHING RETURNING id
""")
_REQUEST = text("""
INSERT INTO retrain_jobs (trigger, signature_id, reason)
VALUES (:trigger, :signature, :reason) ON CONFLICT DO NOTHING RETURNING id
""")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's right to run a job: valid as long as nobody has raised the fence."""

    job_id: int
    fence: int
    trigger: str
    signature_id: int
    requested_at: Any


def request_due(session: Session, settings: Settings) -> int | None:
    """Insert a job if one is due; the statement itself recounts, so a wrong hint starts nothing."""
    rule = {"threshold": settings.threshold, "pause": settings.pause_minutes * 60}
    return session.execute(_REQUEST_DUE, rule).scalar_one_or_none()


def request_by_admin(session: Session, *, force: bool, reason: str | None) -> tuple[Job, bool]:
    """The active job, or a new one; the flag says that it is new.

    Raises:
        Conflict: no label waits and `force` is false.
        NoModel: there is nothing to retrain yet.
    """
    if (active := active_job(session)) is not None:
        return active, False
    signature = session.scalar(select(SignatureRow.id).order_by(SignatureRow.id.desc()).limit(1))
    if signature is None:
        raise NoModel("no model yet: `ratchet bootstrap` trains the first from a file")
    if not force and labels.waiting(session) == 0:
        raise Conflict('no label waits: send labels first, or ask with "force": true')
    made = insert(session, trigger="admin", signature_id=signature, reason=reason)
    return (get(session, made), True) if made else request_by_admin(session, force=force, reason=reason)


def insert(session: Session, *, trigger: str, signature_id: int, reason: str | None) -> int | None:
    """Insert a queued job unless one is active."""
    values = {"trigger": trigger, "signature": signature_id, "reason": reason}
    return session.execute(_REQUEST, values).scalar_one_or_none()


def active_job(session: Session) -> Job | None:
    """The job that is queued or running."""
    return session.scalar(select(Job).where(Job.state.in_(ACTIVE)))


def get(session: Session, job_id: int) -> Job:
    """A job by its id.

    Raises:
        NotFound: there is none.
    """
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def recent(session: Session, limit: int) -> list[Job]:
    """The newest jobs, newest first."""
    return list(session.scalars(select(Job).order_by(Job.id.desc()).limit(limit)))


def claim(session: Session, job_id: int, settings: Settings) -> Claim | None:
    """Take a queued job, or a running one whose lease has expired (that counts as a failure).

    Answers None when there is nothing to do: the job is settled, held by another, or has failed
    for the last time just now.
    """
    row = session.execute(
        text(
            "SELECT state, lease_until < now() AS expired, failures FROM retrain_jobs"
            " WHERE id = :id FOR UPDATE"
        ),
        {"id": job_id},
    ).one_or_none()
    if row is None or row.state not in ACTIVE or (row.state == "running" and not row.expired):
        return None
    failures = row.failures + (row.state == "running")
    if failures >= MAX_FAILURES:
        _settle_failed(session, job_id, failures, "its worker died or fell silent too often")
        return None
    taken = session.execute(
        text(
            "UPDATE retrain_jobs SET state = 'running', fence = fence + 1, failures = :failures,"
            " lease_until = now() + make_interval(secs => :lease),"
            " started_at = coalesce(started_at, now())"
            " WHERE id = :id RETURNING fence, trigger, signature_id, requested_at"
        ),
        {"id": job_id, "failures": failures, "lease": settings.lease_seconds},
    ).one()
    return Claim(job_id=job_id, **taken._mapping)


def renew(session: Session, claim: Claim, settings: Settings) -> None:
    """Prolong the lease.

    Raises:
        ClaimLost: another worker has taken the job, or it is settled.
    """
    _update(
        session, claim, "lease_until = now() + make_interval(secs => :lease)", lease=settings.lease_seconds
    )


def report(session: Session, claim: Claim, *, step: int, progress: float, note: str) -> None:
    """Show where the job is: step 1 to 12, progress 0 to 1 of the whole, and a line for its log.

    Raises:
        ClaimLost: as for `renew`.
    """
    entry = text_entry(step, note)
    _update(
        session,
        claim,
        "step = :step, step_number = :n, progress = :progress,"
        " log = log || jsonb_build_array(jsonb_build_object('at', now()) || CAST(:entry AS jsonb))",
        step=STEPS[step - 1],
        n=step,
        progress=progress,
        entry=entry,
    )


def text_entry(step: int, note: str) -> str:
    """One line of a job's log as JSON."""
    return orjson.dumps({"step": step, "note": note}).decode()


def hold(session: Session, claim: Claim) -> None:
    """Lock the job's row for the transaction that settles it.

    Raises:
        ClaimLost: the claim is not ours any more.
    """
    held = text(
        "SELECT 1 FROM retrain_jobs WHERE id = :id AND fence = :fence AND state = 'running' FOR UPDATE"
    )
    if session.execute(held, {"id": claim.job_id, "fence": claim.fence}).first() is None:
        raise ClaimLost(f"job {claim.job_id}: another worker has taken it")


def settle(
    session: Session, claim: Claim, state: str, *, rows: Mapping[str, Any], result: Mapping[str, Any]
) -> None:
    """End a job as succeeded, rejected or skipped; a skipped job's labels wait again.

    Raises:
        ClaimLost: as for `renew`.
    """
    _update(
        session,
        claim,
        "state = :state, finished_at = now(), lease_until = NULL, error = NULL, progress = 1,"
        " rows = CAST(:rows AS jsonb), result = CAST(:result AS jsonb)"
        + ("" if state == "skipped" else ", step = :step, step_number = :n"),
        state=state,
        **({} if state == "skipped" else {"step": STEPS[-1], "n": len(STEPS)}),
        rows=orjson.dumps(dict(rows), option=orjson.OPT_SERIALIZE_NUMPY).decode(),
        result=orjson.dumps(dict(result), option=orjson.OPT_SERIALIZE_NUMPY).decode(),
    )
    if state == "skipped":
        labels.release(session, claim.job_id)


def give_back(session: Session, claim: Claim) -> None:
    """Put a running job back into the queue without counting a failure.

    Raises:
        ClaimLost: as for `renew`.
    """
    _update(session, claim, "state = 'queued', lease_until = NULL, sent_at = NULL")


def fail(session: Session, claim: Claim, error: str) -> bool:
    """Count an error; the third ends the job and its labels wait again. Answers whether it goes on.

    Raises:
        ClaimLost: as for `renew`.
    """
    hold(session, claim)
    failures = get(session, claim.job_id).failures + 1
    if failures >= MAX_FAILURES:
        _settle_failed(session, claim.job_id, failures, error)
        return False
    _update(
        session,
        claim,
        "state = 'queued', lease_until = NULL, sent_at = NULL, failures = :failures, error = :error",
        failures=failures,
        error=error,
    )
    return True


def to_send(session: Session, *, resend_seconds: float, lease_seconds: float) -> list[int]:
    """Active jobs that need a (new) message: queued without a fresh one, or with an expired lease.

    A message from before the lease ran out woke the worker that fell silent: it wakes no other. After a
    restart of Postgres its worker first gets the time of a lease: nobody could renew meanwhile.
    """
    found = session.scalars(
        text(
            "SELECT id FROM retrain_jobs"
            " WHERE (state = 'queued' OR (state = 'running' AND lease_until < now()"
            " AND pg_postmaster_start_time() < now() - make_interval(secs => :lease)))"
            " AND (sent_at IS NULL OR sent_at < now() - make_interval(secs => :resend)"
            " OR sent_at < lease_until)"
        ),
        {"resend": resend_seconds, "lease": lease_seconds},
    )
    return list(found)


def mark_sent(session: Session, job_id: int) -> None:
    """Remember that a message for the job is on its way."""
    session.execute(text("UPDATE retrain_jobs SET sent_at = now() WHERE id = :id"), {"id": job_id})


def _update(session: Session, claim: Claim, assignments: str, **values: Any) -> None:
    done = session.execute(
        text(
            f"UPDATE retrain_jobs SET {assignments}"  # noqa: S608 - fixed texts of this module
            " WHERE id = :id AND fence = :fence AND state = 'running' RETURNING id"
        ),
        {"id": claim.job_id, "fence": claim.fence, **values},
    )
    if done.first() is None:
        raise ClaimLost(f"job {claim.job_id}: another worker has taken it")


def _settle_failed(session: Session, job_id: int, failures: int, error: str) -> None:
    session.execute(
        text(
            "UPDATE retrain_jobs SET state = 'failed', failures = :failures, finished_at = now(),"
            " lease_until = NULL, error = coalesce(error || '; then: ', '') || :error WHERE id = :id"
        ),
        {"id": job_id, "failures": failures, "error": error},
    )
    labels.release(session, job_id)
